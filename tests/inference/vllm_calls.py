"""Runs in vLLM's own environment: one folder, calls to the engine on it.

    python vllm_calls.py FOLDER REQUESTS ANSWERS

REQUESTS names a `question`, two `pictures` (files) and how many `tokens` to write; ANSWERS becomes
what `scenario` measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "models"))

import vllm_open

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # the async engine's core is a process
# At import: vLLM's processes import this file again.
vllm_open.import_torchvision()

import vllm.model_executor.models.registry as registry  # noqa: E402

# vLLM looks at a model's class in a fresh process, which would not have the declarations.
registry._run_in_subprocess = lambda function: function()

from stagebeam.inference.load import load_generator  # noqa: E402
from stagebeam.inference.types import Candidate, GenerateRequest, Prompt, Sampling  # noqa: E402
from stagebeam.recipe import Autoscaling, EngineConfig  # noqa: E402
from stagebeam.records import Message  # noqa: E402

NEVER = "<never>"


async def ask(engine: Any, request: GenerateRequest) -> dict[str, Any]:
    """Candidates by seed, usage and seconds of one call."""
    started = time.perf_counter()
    items = [item async for item in engine.propose(request)]
    *candidates, usage = items
    found = sorted((c for c in candidates if isinstance(c, Candidate)), key=lambda c: c.index)
    seconds = time.perf_counter() - started
    return {"found": [asdict(c) for c in found], "usage": asdict(usage), "seconds": seconds}


async def refusal(engine: Any, request: GenerateRequest) -> str:
    """The sentence of the ValueError that the call ends with."""
    try:
        await ask(engine, request)
    except ValueError as error:
        return str(error)
    return "none"


async def leave(engine: Any, request: GenerateRequest) -> dict[str, int]:
    """Requests under way in vLLM after the first token, and a moment after the caller left."""
    calls = asyncio.ensure_future(ask(engine, request))
    count = engine._engine.output_processor.get_num_unfinished_requests
    async with asyncio.timeout(30):
        while count() < len(request.seeds):
            await asyncio.sleep(0.01)
    under_way = count()
    calls.cancel()
    async with asyncio.timeout(30):
        while count():
            await asyncio.sleep(0.01)
    return {"under_way": under_way, "left": count()}


async def first_and_leave(engine: Any, request: GenerateRequest) -> int:
    """Requests under way after the iterator was closed behind its first candidate."""
    async with aclosing(engine.propose(request)) as items:
        await anext(items)
    async with asyncio.timeout(30):
        while engine._engine.output_processor.get_num_unfinished_requests():
            await asyncio.sleep(0.01)
    return 0


async def scenario(engine: Any, asked: dict[str, Any]) -> dict[str, Any]:
    first, second = (Path(picture).read_bytes() for picture in asked["pictures"])
    tokens = asked["tokens"]
    turn = (Message("user", asked["question"]),)

    def request(**changes: Any) -> GenerateRequest:
        made: dict[str, Any] = {
            "prompt": Prompt(turn, (first,)),
            "prefix": "",
            "stops": (NEVER,),
            "seeds": (0,),
            "sampling": Sampling(0.0, 1.0, tokens),
        }
        return GenerateRequest(**(made | changes))

    warm = Sampling(1.0, 1.0, tokens)
    greedy = await ask(engine, request())
    text = greedy["found"][0]["text"]
    words = text.split()
    sampled = [await ask(engine, request(seeds=(1, 2, 3, 4), sampling=warm)) for _ in range(2)]
    alone = await ask(engine, request(seeds=(3,), sampling=warm))
    stop = next(word for word in words[2:] if text.index(word) > 0)
    stopped = await ask(engine, request(stops=("<nowhere>", stop)))
    prefix = " ".join(words[:4]) + " "
    second_stage = await ask(engine, request(prefix=prefix))
    other = await ask(engine, request(prompt=Prompt(turn, (second,))))
    blind = await ask(engine, request(prompt=Prompt(turn)))
    long = Sampling(1.0, 1.0, asked["most"])
    full = await ask(engine, request(sampling=long))
    again = await ask(engine, request(sampling=long))
    seconds = min(full["seconds"], again["seconds"]) / 2
    return {
        "greedy": greedy,
        "sampled": sampled,
        "alone": alone,
        "stopped": stopped,
        "stop": stop,
        "prefix": prefix,
        "second_stage": second_stage,
        "other": other,
        "blind": blind,
        "full": full,
        "cut": await ask(engine, request(sampling=long, seconds=seconds)),
        "cancelled": await leave(engine, request(sampling=long, seeds=(1, 2))),
        "left": await first_and_leave(
            engine, request(sampling=long, seeds=(1, 2, 3), stops=tuple(words))
        ),
        "after": await ask(engine, request()),
        "too_long": await refusal(
            engine, request(prompt=Prompt((Message("user", asked["question"] * 9),)))
        ),
        "marker": await ask(
            engine, request(prompt=Prompt((Message("user", asked["marker"]),), (first,)))
        ),
        "healthy": await engine.check(),  # raises where it is not
    }


def main(folder: str, requests: Path, answers: Path) -> None:
    engine = load_generator(
        EngineConfig(
            engine="vllm",
            model=folder,
            max_length=1024,
            kv_cache_mb=64,
            scaling=Autoscaling(max_batch_rows=4),
        )
    )
    try:
        written = asyncio.run(scenario(engine, json.loads(requests.read_text())))
    finally:
        engine.close()
    answers.write_text(json.dumps({**written, "fingerprint": engine.fingerprint}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
