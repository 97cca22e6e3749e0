"""A LLaVA-CoT folder with every fault that a downloaded one may have, in known numbers."""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PilImage

from stagebeam.records import Example, Image, Message
from stagebeam.stages import STAGES, render

STAGED = render({stage: "text" for stage in STAGES})
ROWS, EACH = 2000, 20


@dataclass(frozen=True)
class Faulty:
    """A source of ROWS rows, EACH of every fault, and what should be left."""

    source: dict[str, object]
    good: list[Example]
    faults: dict[str, int]


def make_faulty(folder: Path) -> Faulty:
    """Write it; the folder must be empty."""
    (folder / "images" / "vqa").mkdir(parents=True)
    images = {}
    for number in range(100):
        buffer = io.BytesIO()
        PilImage.effect_noise((16, 16), number + 1).save(buffer, "PNG")
        images[f"vqa/{number}.png"] = buffer.getvalue()
        (folder / "images" / "vqa" / f"{number}.png").write_bytes(buffer.getvalue())
    (folder / "images" / "vqa" / "cut.png").write_bytes(images["vqa/0.png"][:-30])
    rng = random.Random(0)
    places = rng.sample(range(1, ROWS), 5 * EACH)
    kinds = ("broken", "missing", "type", "truncated", "duplicate")
    kind_of = {place: kinds[n % 5] for n, place in enumerate(places)}
    lines: list[str] = []
    good: list[Example] = []
    earlier: dict[str, object] = {}
    for n in range(ROWS):
        paths, questions = _shape(n)
        turns = [
            {"from": speaker, "value": said}
            for question in questions
            for speaker, said in (("human", question), ("gpt", STAGED))
        ]
        row: dict[str, object] = {"id": f"row-{n}", "conversations": turns}
        if paths:
            row["image"] = paths if len(paths) > 1 else paths[0]
        kind = kind_of.get(n)
        if kind == "broken":
            row["image"] = "vqa/cut.png"
        elif kind == "missing":
            row["image"] = "vqa/none.png"
        elif kind == "type":
            row["conversations"] = "text" if n % 2 else [1, 2]
        elif kind == "duplicate":
            row = {**earlier, "id": f"row-{n}"}
        line = json.dumps(row, ensure_ascii=False)
        lines.append(line[: len(line) // 2] if kind == "truncated" else line)
        if kind is None:
            earlier = row
            messages = tuple(
                message
                for question in questions
                for message in (Message("user", question), Message("assistant", STAGED))
            )
            pictures = tuple(Image(images[path], path) for path in paths)
            source_name = "llava_cot/vqa" if paths else "llava_cot/text"
            good.append(Example(f"row-{n}", pictures, messages, source_name))
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source: dict[str, object] = {
        "kind": "llava_cot",
        "annotations": str(folder / "train.jsonl"),
        "image_root": str(folder / "images"),
    }
    faults = {"broken image": EACH, "duplicate": EACH, "malformed row": 2 * EACH}
    return Faulty(source, good, {**faults, "missing image": EACH})


def _shape(n: int) -> tuple[list[str], list[str]]:
    """Image paths and questions of row n: most have one of each, some none or two images, some
    three turns."""
    paths = [f"vqa/{n % 100}.png", f"vqa/{(n + 1) % 100}.png"][: {3: 0, 7: 2}.get(n % 10, 1)]
    return paths, [f"W\u00ede {n}, {turn}?" for turn in range(3 if n % 10 == 5 else 1)]
