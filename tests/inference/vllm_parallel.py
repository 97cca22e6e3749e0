"""Runs in vLLM's own environment: one model, divided over two processes, asks greedily.

    python vllm_parallel.py FOLDER REQUESTS ANSWERS

REQUESTS names a `question`, a `picture` (a file) and how many `tokens` to write.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from vllm_calls import NEVER, ask  # declares what vLLM's imports need

from stagebeam.inference.load import load_generator
from stagebeam.inference.types import GenerateRequest, Prompt, Sampling
from stagebeam.recipe import Autoscaling, EngineConfig
from stagebeam.records import Message


def main(folder: str, requests: Path, answers: Path) -> None:
    asked = json.loads(requests.read_text())
    engine = load_generator(
        EngineConfig(
            engine="vllm",
            model=folder,
            max_length=512,
            kv_cache_mb=64,
            tensor_parallel=2,
            scaling=Autoscaling(max_batch_rows=2),
        )
    )
    turn = (Message("user", asked["question"]),)
    prompt = Prompt(turn, (Path(asked["picture"]).read_bytes(),))
    request = GenerateRequest(prompt, "", (NEVER,), (0,), Sampling(0.0, 1.0, asked["tokens"]))
    try:
        answers.write_text(json.dumps(asyncio.run(ask(engine, request))))
    finally:
        engine.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
