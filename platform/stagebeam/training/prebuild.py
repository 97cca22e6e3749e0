"""Build DeepSpeed's CPU communication op now, so that the first training run does not wait for it.

`python -m stagebeam.training.prebuild` compiles `deepspeed_shm_comm` with g++ and ninja (a minute
or more) into torch's extension cache, where every later process of this user finds it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def prebuild() -> Path:
    """Build and load the op; returns the shared library.

    Raises RuntimeError (from torch) with the compiler's output if it does not build.
    """
    # DeepSpeed reads the accelerator when it is imported; torch looks ninja up on the PATH, where
    # it lies beside the interpreter although nobody has activated the environment.
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    return Path(ShareMemCommBuilder().load(verbose=False).__file__)


if __name__ == "__main__":
    print(f"DeepSpeed's CPU communication op is built: {prebuild()}")
