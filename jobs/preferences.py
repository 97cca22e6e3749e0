"""Write preference pairs: `python -m jobs.preferences TRACES --shards FOLDER --output FOLDER`.

Each stage of a trace in which the judge preferred one candidate to another becomes a row; its
images are found in the shards by their digests. `judge_training.pairs` of a recipe reads the
result, and so does whatever reads parquet.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import run_job
from stagebeam.data.manifest import Manifest, Refusal
from stagebeam.data.preferences import Preference, write_preference_shards
from stagebeam.data.shards import iter_examples
from stagebeam.records import Image
from stagebeam.search.preferences import Pair, pairs_of
from stagebeam.search.seeds import image_digest
from stagebeam.search.trace import read_traces

SOURCE = "traces"


def write_pairs(
    traces: Sequence[Path], shards: Sequence[Path], output: Path, min_margin: float = 0.0
) -> Manifest:
    """The pairs of all traces, each once, as shards in `output`.

    A pair whose image is in none of `shards` is refused and named in the manifest. Raises
    ValueError for a file that holds no traces, shards that are not complete, an output folder
    that is in use, or where no pair is left.
    """
    pairs = list(chain.from_iterable(_read(path, min_margin) for path in traces))
    found = _Found(_images({d for pair in pairs for d in pair.image_digests}, shards))
    origin = hashlib.sha256()
    for path in traces:
        origin.update(path.read_bytes())
    origin.update(str(min_margin).encode())
    return write_preference_shards(
        output,
        found.preferences(pairs),
        origin=origin.hexdigest()[:16],
        source=SOURCE,
        refused=lambda: found.refused,
    )


def _read(path: Path, min_margin: float) -> Iterator[Pair]:
    for trace in read_traces(path):
        yield from pairs_of(trace, min_margin)


def _images(wanted: set[str], shards: Sequence[Path]) -> dict[str, Image]:
    """The wanted images by digest, as far as they are in the shards."""
    images: dict[str, Image] = {}
    for example in chain.from_iterable(map(iter_examples, shards)) if wanted else ():
        for image in example.images:
            digest = image_digest(image.bytes)
            if digest in wanted:
                images.setdefault(digest, image)
        if len(images) == len(wanted):
            break
    return images


@dataclass(slots=True)
class _Found:
    """Pairs as they become rows, and those that do not."""

    images: dict[str, Image]
    refused: list[Refusal] = field(default_factory=list)

    def preferences(self, pairs: Sequence[Pair]) -> Iterator[Preference]:
        seen: set[tuple[object, ...]] = set()
        number: Counter[str] = Counter()
        for pair in pairs:
            number[pair.trace] += 1
            name = f"{pair.trace}-{number[pair.trace]}"
            missing = [d for d in pair.image_digests if d not in self.images]
            if missing:
                self._refuse(name, "missing image", f"The image {missing[0]} is in no shard.")
            elif pair.said in seen:
                self._refuse(name, "repeated pair", "Another trace found the same.")
            else:
                seen.add(pair.said)
                yield Preference(
                    id=name,
                    images=tuple(self.images[d] for d in pair.image_digests),
                    messages=pair.messages,
                    stage=pair.stage,
                    prefix=pair.prefix,
                    chosen=pair.chosen,
                    rejected=pair.rejected,
                    margin=pair.margin,
                    trace=pair.trace,
                )

    def _refuse(self, name: str, fault: str, reason: str) -> None:
        self.refused.append(Refusal(id=name, fault=fault, reason=reason))


def main(
    traces: Annotated[list[Path], typer.Argument(help="Trace files (traces.jsonl).")],
    output: Annotated[Path, typer.Option(help="Folder for the pairs.")],
    shards: Annotated[
        list[Path] | None, typer.Option(help="Shards with the traces' images; may be repeated.")
    ] = None,
    min_margin: Annotated[
        float, typer.Option(help="Leave out pairs that were closer, in log-odds.")
    ] = 0.0,
) -> None:
    """Write the winners and losers of traces as pairs to train on."""

    def job() -> None:
        manifest = write_pairs(traces, shards or [], output, min_margin)
        left_out = ", ".join(f"{count} {fault}" for fault, count in manifest.faults.items())
        print(
            f"{manifest.rows} pairs in {output}" + (f"; left out: {left_out}" if left_out else "")
        )

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
