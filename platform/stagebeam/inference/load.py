"""From a recipe's engine section to a generator or a judge. What is not chosen is not imported."""

from __future__ import annotations

from typing import Protocol

from stagebeam.inference.judge_calls import OwnedGenerator
from stagebeam.inference.types import Judge
from stagebeam.recipe import EngineConfig, JudgeConfig

_KEPT_MB = 256  # of prefixes, where the recipe says nothing


class OwnedJudge(Judge, Protocol):
    """A judge and what runs it."""

    fingerprint: str  # of all that decides a verdict

    async def check(self) -> None:
        """Raises where it does not work any more, and would not by itself."""

    def close(self) -> None: ...


def load_generator(config: EngineConfig) -> OwnedGenerator:
    """Raises ValueError where the model folder is absent, its weights do not fit, or the engine is
    not installed."""
    if config.engine == "openai":
        from stagebeam.inference.chat_server import ChatServer
        from stagebeam.inference.openai_engine import OpenAIEngine

        return OpenAIEngine(ChatServer(config))
    if config.engine == "vllm":
        from stagebeam.inference.vllm_engine import VllmEngine

        return VllmEngine(config)
    import torch

    from stagebeam.inference.transformers_engine import TransformersEngine
    from stagebeam.models.load import load

    torch.set_num_threads(config.threads)
    return TransformersEngine(
        load(config.model, config.device),
        max_rows=config.scaling.max_batch_rows,
        kv_bytes=(config.kv_cache_mb or _KEPT_MB) << 20,
        draft_tokens=config.draft_tokens,
    )


def load_judge(config: JudgeConfig) -> OwnedJudge:
    """Raises ValueError as `load_generator` does."""
    if config.kind == "text" or config.kind == "remote":
        from stagebeam.inference.openai_engine import OpenAIEngine
        from stagebeam.inference.remote_judge import RemoteJudge
        from stagebeam.inference.text_judge import TextJudge

        generator = load_generator(config)
        text = TextJudge(generator, orders=config.orders, max_new_tokens=config.max_new_tokens)
        if config.kind == "text":
            return text
        assert isinstance(generator, OpenAIEngine), "the recipe checks it"
        return RemoteJudge(generator, text)
    import torch

    from stagebeam.inference.verdict import TransformersJudge
    from stagebeam.models.load import load

    torch.set_num_threads(config.threads)
    return TransformersJudge(
        load(config.model, config.device),
        kind=config.kind,
        max_rows=config.scaling.max_batch_rows,
    )
