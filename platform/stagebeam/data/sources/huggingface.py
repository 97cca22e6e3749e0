"""A data set of the Hugging Face hub, or a folder of its files, streamed by `datasets`.

Nothing is downloaded whole and images stay encoded as they came. A row is read from the columns
that the recipe names.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from stagebeam.data.refusal import Refused
from stagebeam.data.sources import questions
from stagebeam.data.sources.files import hash_of, stamps
from stagebeam.data.sources.image_store import MAX_IMAGE_BYTES, check_size, open_store
from stagebeam.data.sources.row import RowError, id_of, refusal
from stagebeam.data.sources.span import Span
from stagebeam.records import Example, Image
from stagebeam.source_config import HuggingFaceSource

if TYPE_CHECKING:  # takes a second to import, and other sources do without
    from datasets import IterableDataset

_HUB = "hf://datasets/"
_ARCHIVES = ("zip://", "tar://")


def spans(source: HuggingFaceSource, rows: int | None) -> Iterator[Span[HuggingFaceSource]]:
    """A stretch for each of the data set's files; one, if `rows` is None or there is a limit.

    Raises ValueError if the data set or a column is not there. All stretches read one commit.
    """
    source = source.model_copy(update={"revision": _commit(source) or source.revision})
    shards = _open(source).num_shards
    if rows is None or source.limit is not None:
        yield Span(source, 0, source.limit)
    else:
        yield from (Span(source, 0, None, str(number)) for number in range(shards))


def read_span(span: Span[HuggingFaceSource]) -> Iterator[Example | Refused]:
    """The rows of a shard, or of all of them."""
    data = _open(span.source)
    shards = [int(span.file)] if span.file else range(data.num_shards)
    rows = chain.from_iterable(_read(data, number, span.source) for number in shards)
    return islice(rows, span.rows)


def fingerprint(source: HuggingFaceSource) -> str:
    """Changes with the settings and the commit on the hub, or the folder's files.

    Raises ValueError if the hub has no such data set.
    """
    if _is_local(source):
        files = (path for path in sorted(Path(source.path).rglob("*")) if path.is_file())
        return stamps(source, files)
    return hash_of(source, _commit(source) or "")


def absolute(source: HuggingFaceSource) -> HuggingFaceSource:
    """The source with an absolute path, if it is a folder."""
    path = str(Path(source.path).absolute()) if _is_local(source) else source.path
    return source.model_copy(update={"path": path})


def _is_local(source: HuggingFaceSource) -> bool:
    return Path(source.path).exists()


def _commit(source: HuggingFaceSource) -> str | None:
    """The commit that a data set of the hub is at; None if the hub does not say."""
    if _is_local(source):
        return None
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return HfApi().dataset_info(source.path, revision=source.revision).sha
    except (RepositoryNotFoundError, HFValidationError):
        raise ValueError(f"There is no folder and no data set {source.path}.") from None
    except (OSError, httpx.HTTPError):
        return None


def _open(source: HuggingFaceSource) -> IterableDataset:
    """The columns that are read, with encoded images."""
    import datasets

    try:
        data = datasets.load_dataset(
            source.path,
            source.name,
            split=source.rows_from,
            streaming=True,
            revision=source.revision,
        )
        there = data.column_names or list(next(iter(data), {}))
    except Exception as error:  # of the hub, the network, or whatever reads the files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"Cannot open the data set {source.path}: {reason}.") from error
    wanted = list(dict.fromkeys(_columns(source).values()))
    absent = [column for column in wanted if column not in there]
    if absent:
        raise ValueError(
            f"The data set {source.path} has no column {', '.join(absent)}; "
            f"it has {', '.join(there)}."
        )
    data = data.select_columns(wanted)
    for column, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            data = data.cast_column(column, type(feature)(datasets.Image(decode=False)))
    return data


def _columns(source: HuggingFaceSource) -> dict[str, str]:
    """What is read -> the column that holds it."""
    return {what: column for what, column in source.columns if column is not None}


def _read(
    data: IterableDataset, shard: int, source: HuggingFaceSource
) -> Iterator[Example | Refused]:
    """The rows of a shard up to the first that its file does not give, refused for all after it."""
    stem = f"{PurePath(source.path).name}:{source.rows_from}:{shard}"
    number = 0
    # Over a network an error may pass, so only what is wrong with the data is a refusal there.
    damage: tuple[type[Exception], ...] = (Exception,) if _is_local(source) else (ValueError,)
    rows = iter(data.shard(data.num_shards, shard))
    while True:
        place = f"{stem}:{number}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except damage as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            reason = f"The shard cannot be read on from row {number}: {said}."
            yield Refused(place, "malformed row", reason)
            return
        yield _row(row, place, source)
        number += 1


def _row(row: Mapping[str, Any], place: str, source: HuggingFaceSource) -> Example | Refused:
    fields = {what: row[column] for what, column in _columns(source).items()}
    images = fields.pop("images", None)
    try:
        return questions.example(
            fields | {"conversations": _transposed(fields.get("conversations"))},
            id=id_of(fields) if "id" in fields else place,
            images=tuple(_images(images, source)),
            source=f"huggingface/{PurePath(source.path).name}",
            split=source.split,
        )
    except RowError as error:
        text = json.dumps(fields, ensure_ascii=False, default=str)
        return refusal(error, fields.get("id"), place, text)


def _transposed(turns: object) -> object:
    """Older data sets hold a list of turns as lists of their fields."""
    if isinstance(turns, dict) and all(isinstance(column, list) for column in turns.values()):
        return [dict(zip(turns, turn, strict=True)) for turn in zip(*turns.values(), strict=True)]
    return turns


def _images(value: object, source: HuggingFaceSource) -> Iterator[Image]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, bytes):
            yield Image(one)
        elif isinstance(one, str):
            yield _image_at(one, source)
        elif isinstance(one, dict) and isinstance(one.get("bytes"), bytes):
            yield Image(one["bytes"], str(one.get("path") or ""))
        elif isinstance(one, dict) and isinstance(one.get("path"), str):
            yield _image_at(one["path"], source)
        elif one is not None:
            raise RowError("The row has an image that is neither bytes nor a path.")


def _image_at(path: str, source: HuggingFaceSource) -> Image:
    """The image in a file of the data set, which may lie in an archive (`zip://a.png::FILE`)."""
    if _is_local(source) and "::" not in path:
        root = Path(source.path)
        inside = path.removeprefix(f"{root.absolute()}/")
        return replace(open_store(root).read(inside), path=inside)
    return Image(_streamed(path, source), path.split("::")[0])


def _streamed(path: str, source: HuggingFaceSource) -> bytes:
    from datasets.utils.file_utils import xopen

    try:
        if not _is_inside(path, source):
            raise RowError(f"The image path {path} leads out of the data set.", "unsafe path")
        with xopen(path, "rb") as opened:
            content: bytes = opened.read(MAX_IMAGE_BYTES + 1)
    except (FileNotFoundError, KeyError, ValueError, RuntimeError):  # ValueError: a NUL byte
        raise RowError(f"There is no image file {path[:200]!r}.", "missing image") from None
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise RowError(f"The image {path} is damaged.", "broken image") from None
    check_size(path, len(content))
    return content


def _is_inside(path: str, source: HuggingFaceSource) -> bool:
    """Whether a file, or an archive and a name in it, belongs to the data set."""
    archived, _, file = path.rpartition("::")
    # Any other chain could name a file of its own in front.
    if archived and (not archived.startswith(_ARCHIVES) or "::" in archived):
        return False
    if _is_local(source):
        return Path(file).resolve().is_relative_to(Path(source.path).resolve())
    return file.startswith((f"{_HUB}{source.path}@", f"{_HUB}{source.path}/"))
