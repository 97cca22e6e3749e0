"""How an engine runs each family."""

from __future__ import annotations

from collections.abc import Callable

from stagebeam.models.families.mllama_runtime import MllamaRuntime
from stagebeam.models.load import Loaded
from stagebeam.models.placed_runtime import llava_next_runtime, llava_runtime, qwen_runtime
from stagebeam.models.runtime import Runtime

_RUNTIMES: dict[str, Callable[[Loaded], Runtime]] = {
    "mllama": MllamaRuntime,
    "llava": llava_runtime,
    "llava_next": llava_next_runtime,
    "qwen2_5_vl": qwen_runtime,
}


def runtime_of(loaded: Loaded) -> Runtime:
    """The runtime of a loaded model's family."""
    return _RUNTIMES[loaded.family.name](loaded)
