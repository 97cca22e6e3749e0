"""Write preference pairs: `python -m jobs.preferences TRACES --shards FOLDER --output FOLDER`.

Each stage of a trace in which the judge preferred one candidate to another becomes a row; its
images are found in the shards by their digests. `judge_training.pairs` of a recipe reads the
result, and so does whatever reads parquet.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import run_job
from stagebeam.data.manifest import Manifest, Refusal
from stagebeam.data.preferences import Preference, write_preference_shards
from stagebeam.data.row_groups import CACHE_BYTES
from stagebeam.data.shards import ShardReader, iter_examples
from stagebeam.records import Image
from stagebeam.search.preferences import Pair, pairs_of
from stagebeam.search.seeds import image_digest
from stagebeam.search.trace import read_traces
from stagebeam.storage import Place, place_of

SOURCE = "traces"


def write_pairs(
    traces: Sequence[Place], shards: Sequence[Place], output: Path, min_margin: float = 0.0
) -> Manifest:
    """The pairs of all traces, each once, as shards in `output`.

    The traces are read twice: first for the images that they name, whose places are then found in
    one reading of `shards`, and again to write the pairs, each image read where it lies. A pair
    whose image is in none of `shards` is refused and named in the manifest. Raises ValueError for a
    file that holds no traces, shards that are not complete, an output folder that is in use, or
    where no pair is left.
    """
    wanted = {d for pair in _read(traces, min_margin) for d in pair.image_digests}
    found = _Found(_Images(wanted, shards))
    origin = hashlib.sha256()
    for path in traces:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: origin)
    origin.update(str(min_margin).encode())
    return write_preference_shards(
        output,
        found.preferences(_read(traces, min_margin)),
        origin=origin.hexdigest()[:16],
        source=SOURCE,
        refused=lambda: found.refused,
    )


def _read(traces: Sequence[Place], min_margin: float) -> Iterator[Pair]:
    for path in traces:
        for trace in read_traces(path):
            yield from pairs_of(trace, min_margin)


class _Images:
    """Where the wanted images lie in the shards. They are read when they are asked for; what has
    been read lately is kept, up to CACHE_BYTES."""

    def __init__(self, wanted: set[str], shards: Sequence[Place]) -> None:
        self._places: dict[str, tuple[int, int, int]] = {}  # folder, row, number in the row
        for folder, path in enumerate(shards if wanted else ()):
            for row, example in enumerate(iter_examples(path)):
                for number, image in enumerate(example.images):
                    digest = image_digest(image.bytes)
                    if digest in wanted:
                        self._places.setdefault(digest, (folder, row, number))
        each = CACHE_BYTES // max(1, len(shards))
        self._readers = [ShardReader(path, cache_bytes=each) for path in shards]

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def __getitem__(self, digest: str) -> Image:
        folder, row, number = self._places[digest]
        return self._readers[folder].row(row).images[number]


@dataclass(slots=True)
class _Found:
    """Pairs as they become rows, and those that do not."""

    images: _Images
    refused: list[Refusal] = field(default_factory=list)

    def preferences(self, pairs: Iterable[Pair]) -> Iterator[Preference]:
        seen: set[bytes] = set()
        number: Counter[str] = Counter()
        for pair in pairs:
            number[pair.trace] += 1
            name = f"{pair.trace}-{number[pair.trace]}"
            said = hashlib.sha256(repr(pair.said).encode()).digest()
            missing = [d for d in pair.image_digests if d not in self.images]
            if missing:
                self._refuse(name, "missing image", f"The image {missing[0]} is in no shard.")
            elif said in seen:
                self._refuse(name, "repeated pair", "Another trace found the same.")
            else:
                seen.add(said)
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
    traces: Annotated[list[str], typer.Argument(help="Trace files (traces.jsonl), or URLs.")],
    output: Annotated[Path, typer.Option(help="Folder for the pairs.")],
    shards: Annotated[
        list[str] | None, typer.Option(help="Shards with the traces' images; may be repeated.")
    ] = None,
    min_margin: Annotated[
        float, typer.Option(help="Leave out pairs that were closer, in log-odds.")
    ] = 0.0,
) -> None:
    """Write the winners and losers of traces as pairs to train on."""

    def job() -> None:
        places = [place_of(text) for text in shards or []]
        manifest = write_pairs([place_of(text) for text in traces], places, output, min_margin)
        left_out = ", ".join(f"{count} {fault}" for fault, count in manifest.faults.items())
        print(
            f"{manifest.rows} pairs in {output}" + (f"; left out: {left_out}" if left_out else "")
        )

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
