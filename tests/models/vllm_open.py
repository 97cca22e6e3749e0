"""Runs in vLLM's own environment: one folder, greedy answers to prompts with one picture each.

    python vllm_open.py FOLDER REQUESTS ANSWERS

REQUESTS is a JSON list of `prompt`, `picture` (a file) and `tokens` (how many to write); ANSWERS
becomes one of `prompt_ids` and `ids`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Before vLLM is imported: the engine in this process, so that none outlives it, and no look at the
# internet.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def import_torchvision() -> None:
    """torchvision's CUDA build finds no operators beside torch's CPU build and fails on import,
    unless two that it looks up are declared. Nothing here calls them."""
    import torch

    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


def answers(folder: str, requests: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    import vllm.model_executor.models.registry as registry
    from PIL import Image
    from vllm import LLM, SamplingParams

    # vLLM looks at a model's class in a fresh process, which would not have the declarations.
    registry._run_in_subprocess = lambda function: function()
    llm = LLM(
        model=folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=2,
        kv_cache_memory_bytes=64 << 20,
        limit_mm_per_prompt={"image": 1},
    )
    outputs = llm.generate(
        [
            {
                "prompt": request["prompt"],
                "multi_modal_data": {"image": Image.open(request["picture"]).convert("RGB")},
            }
            for request in requests
        ],
        [
            SamplingParams(temperature=0, max_tokens=request["tokens"], ignore_eos=True)
            for request in requests
        ],
    )
    return [
        {"prompt_ids": list(o.prompt_token_ids), "ids": list(o.outputs[0].token_ids)}
        for o in outputs
    ]


if __name__ == "__main__":
    import_torchvision()
    written = answers(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
    Path(sys.argv[3]).write_text(json.dumps(written))
