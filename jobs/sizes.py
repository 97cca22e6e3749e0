"""The table of docs/clusters.md: `python -m jobs.sizes [--write]`.

What `stagebeam estimate` predicts for recipes of real sizes, from the published dimensions of their
models. There are no shards and no weights, so rows are taken to be as long as they may be.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.errors import run_job
from jobs.train import required_train
from stagebeam.cluster.sizing import engines
from stagebeam.recipe import EngineConfig, ModelConfig, Recipe, load_recipe
from stagebeam.training.estimate import Estimate, estimate

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "clusters.md"
BEGIN, END = "<!-- python -m jobs.sizes --write -->\n", "<!-- end -->\n"
RECIPES = (
    "llava-o1-llama3.2-11b-1n8g-zero3",
    "llava-o1-llama3.2-11b-1n8g-offload",
    "llava-o1-llama3.2-11b-2n8g-zero3",
    "llava-o1-llama3.2-11b-1g-lora",
    "llava-o1-llama3.2-90b-4n8g-zero3",
    "llava-o1-qwen2.5-vl-7b-1n8g-zero3",
)
# LLaVA-CoT-100k has between 98 and 99 thousand rows.
ROWS = 98_500
# Mean length that is assumed for the lower figure of hours; measure yours with `validate`.
TYPICAL_TOKENS = 1024
TFLOPS, MFU = 989.0, 0.35  # dense bfloat16 of an H100 or H200; the share of it is assumed
MEMORY_GIB = {"H100": 79.6, "H200": 140.4}  # what 80 and 141 GB are to a driver
_TIGHT = 0.9
_GIB = 2**30


def _mllama(hidden: int, layers: int, heads: int, inner: int) -> dict[str, Any]:
    """Llama-3.2-Vision, beside what transformers has as defaults; a cross-attention layer comes
    after every fourth one."""
    return {
        "model_type": "mllama",
        "vision_config": {"model_type": "mllama_vision_model", "image_size": 560},
        "text_config": {
            "model_type": "mllama_text_model",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "cross_attention_layers": list(range(3, layers, 5)),
        },
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.2-11B-Vision-Instruct": _mllama(4096, 40, 32, 14336),
    "meta-llama/Llama-3.2-90B-Vision-Instruct": _mllama(8192, 100, 64, 28672),
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "out_hidden_size": 3584,
        },
    },
}


@dataclass(frozen=True, slots=True)
class Size:
    """The predictions of one recipe."""

    recipe: Recipe
    full: Estimate  # each row has `data.max_length` tokens
    typical: Estimate  # each row has `TYPICAL_TOKENS`


def size_of(recipe: Recipe) -> Size:
    """Predict one recipe's training. Raises ValueError where it has no train section."""
    from transformers import AutoConfig

    train = required_train(recipe)
    kept = 1 - (recipe.data.held_out.share if recipe.data.held_out else 0)
    steps = int(ROWS * kept * train.epochs / train.global_batch_size)
    train = train.model_copy(update={"max_steps": steps})
    with tempfile.TemporaryDirectory() as folder:
        dimensions = dict(PUBLISHED[recipe.model.path])
        config = AutoConfig.for_model(dimensions.pop("model_type"), **dimensions)
        config.save_pretrained(folder)
        model = ModelConfig(**{**recipe.model.model_dump(), "path": folder})

        def of(tokens: int) -> Estimate:
            data = recipe.data.model_copy(update={"max_length": tokens})
            changed = recipe.model_copy(update={"model": model, "data": data})
            return estimate(changed, train, None, tflops=TFLOPS, mfu=MFU)

        return Size(recipe, of(recipe.data.max_length), of(TYPICAL_TOKENS))


def table(sizes: Sequence[Size]) -> str:
    """Both tables in Markdown."""
    return "\n".join([*_training(sizes), "", *_serving(sizes)]) + "\n"


def _training(sizes: Sequence[Size]) -> Iterator[str]:
    devices = [f"{name} ({memory:g} GiB)" for name, memory in MEMORY_GIB.items()]
    yield _row(
        "recipe", "GPUs", "peak a GPU, GiB", *devices, "host a rank, GiB",
        f"hours, rows of {TYPICAL_TOKENS:,} tokens", "hours, full rows", "checkpoint, GiB",
    )  # fmt: skip
    yield _row(*["---"] * (7 + len(devices)))
    for size in sizes:
        memory = size.full.batches[-1].memory
        hours = [made.duration for made in (size.typical, size.full)]
        yield _row(
            f"`{size.recipe.name}`",
            str(required_train(size.recipe).num_workers),
            f"{memory.peak / _GIB:.1f}",
            *(_verdict(memory.peak / _GIB / gib) for gib in MEMORY_GIB.values()),
            f"{memory.host / _GIB:.1f}" if memory.host else "",
            *(f"{time.hours:.3g}" if time else "" for time in hours),
            f"{size.full.disk.checkpoint / _GIB:.0f}",
        )


def _serving(sizes: Sequence[Size]) -> Iterator[str]:
    yield _row("recipe", "part", "engine", "replicas", "GPUs a replica", "weights a GPU, GiB")
    yield _row(*["---"] * 6)
    for size in sizes:
        serve = size.recipe.serve
        for part, engine in engines(serve).items() if serve is not None else ():
            least, most = engine.scaling.min_replicas, engine.scaling.max_replicas
            yield _row(
                f"`{size.recipe.name}`", part, engine.engine, f"{least} to {most}",
                f"{engine.gpus:g}" if engine.gpus else "", _weights(engine, size),
            )  # fmt: skip


def _weights(engine: EngineConfig, size: Size) -> str:
    """Of the model that the recipe trains, whole or divided."""
    if not engine.gpus:
        return "the server's"
    return f"{size.full.disk.export / max(1, engine.tensor_parallel) / _GIB:.1f}"


def _verdict(share: float) -> str:
    word = "does not fit" if share > 1 else "tight" if share > _TIGHT else "fits"
    return f"{word}, {share:.0%}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def replaced(page: str, tables: str) -> str:
    """The page with these tables between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, "the page has both marks"
    return before + BEGIN + tables + END + after


def main(
    write: Annotated[bool, typer.Option(help="Put the tables into docs/clusters.md.")] = False,
) -> None:
    """Print what training and serving at real sizes takes; predicted."""

    def job() -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # no GPU is touched
        folder = ROOT / "jobs" / "recipes"
        tables = table([size_of(load_recipe(folder / f"{name}.yaml")) for name in RECIPES])
        if write:
            PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
        else:
            print(tables, end="")

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
