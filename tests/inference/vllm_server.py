"""Runs in vLLM's own environment: vLLM's OpenAI-compatible server.

python vllm_server.py FOLDER PORT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "models"))

import vllm_open

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
# At import: vLLM's processes import this file again.
vllm_open.import_torchvision()

import vllm.model_executor.models.registry as registry  # noqa: E402

# vLLM looks at a model's class in a fresh process, which would not have the declarations.
registry._run_in_subprocess = lambda function: function()

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    folder, port = sys.argv[1:]
    options = {
        "--served-model-name": "scripted",
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": "float32",
        "--max-model-len": "1024",
        "--kv-cache-memory-bytes": str(64 << 20),
        "--max-num-seqs": "4",
    }
    flags = ["--enforce-eager", "--enable-prompt-tokens-details"]
    listed = [word for option in options.items() for word in option]
    sys.argv = [sys.argv[0], "--model", folder, *listed, *flags]
    main()
