"""WebDataset: tar files in which neighbouring members of one name are one row.

`KEY.json` holds the row, as LLaVA does (`{"conversations"}`) or as `{"question", "answer"}` with
`"choices"` where there are some; `KEY.jpg`, `KEY.1.png`, ... are its images, in order of name.
"""

from __future__ import annotations

import glob
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, Self

from stagebeam.data.refusal import Refused
from stagebeam.data.sources import questions
from stagebeam.data.sources.files import stamps
from stagebeam.data.sources.image_store import check_size
from stagebeam.data.sources.row import MAX_ROW_BYTES, RowError, id_of, json_row, refusal
from stagebeam.data.sources.span import Span
from stagebeam.records import Example, Image
from stagebeam.source_config import WebDatasetSource

_IMAGES = frozenset({"png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"})
_DAMAGE = (tarfile.TarError, EOFError, OSError, ValueError, zlib.error)


def spans(source: WebDatasetSource, rows: int | None) -> Iterator[Span[WebDatasetSource]]:
    """A stretch for each tar file; one of all, if `rows` is None or the source has a limit.

    Raises ValueError if there is no such file.
    """
    files = _files(source)
    if rows is None or source.limit is not None:
        yield Span(source, 0, source.limit)
    else:
        yield from (Span(source, 0, None, str(file)) for file in files)


def read_span(span: Span[WebDatasetSource]) -> Iterator[Example | Refused]:
    """The rows of a tar file, or of all of them."""
    files = [Path(span.file)] if span.file else _files(span.source)
    return islice(chain.from_iterable(_read(file, span.source.split) for file in files), span.rows)


def fingerprint(source: WebDatasetSource) -> str:
    """Changes with the settings and the tar files' names, sizes and times of change."""
    return stamps(source, _files(source))


def absolute(source: WebDatasetSource) -> WebDatasetSource:
    """The source with an absolute path."""
    return source.model_copy(update={"shards": str(Path(source.shards).absolute())})


def _files(source: WebDatasetSource) -> list[Path]:
    files = [Path(name) for name in sorted(glob.glob(source.shards, recursive=True))]
    if not files:
        raise ValueError(f"There is no tar file {source.shards}.")
    return files


@dataclass(slots=True)
class _Row:
    """The members of one key, as far as they have been read."""

    key: str
    json: bytes | None = None
    images: list[Image] = field(default_factory=list)
    error: RowError | None = None


class _Info(tarfile.TarInfo):
    """A header; one that is damaged or absent is an error, not the end of the file."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.SubsequentHeaderError(str(error)) from None  # type: ignore[attr-defined]


def _read(file: Path, split: str) -> Iterator[Example | Refused]:
    row: _Row | None = None
    count = 0
    try:
        with tarfile.open(file, "r|*", tarinfo=_Info) as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every header
                key = _key(member)
                if key is None:
                    continue
                if row is None or row.key != key:
                    if row is not None:
                        yield _finished(row, file, split)
                        count += 1
                    row = _Row(key)
                _add(row, archive, member)
    except _DAMAGE as error:
        # The row that was being read may lack members, so it goes with the rest.
        reason = f"The tar file {file.name} cannot be read on from row {count + 1}: {error}."
        yield Refused(f"{file.name}:{count + 1}", "malformed row", reason)
        return
    if row is not None:
        yield _finished(row, file, split)


def _key(member: tarfile.TarInfo) -> str | None:
    """The member's name up to the first dot of its base; None for folders and hidden files."""
    path = PurePosixPath(member.name)
    stem = path.name.split(".", 1)[0]
    return str(path.with_name(stem)) if stem and not member.isdir() else None


def _add(row: _Row, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    kind = PurePosixPath(member.name).name.partition(".")[2].lower()
    is_image = kind.rpartition(".")[2] in _IMAGES
    if kind != "json" and not is_image:
        return
    try:
        if not member.isreg():
            raise RowError(f"The member {member.name} is a link or no file.", "unsafe path")
        if is_image:
            check_size(member.name, member.size)
        elif member.size > MAX_ROW_BYTES:
            raise RowError(f"The row is longer than {MAX_ROW_BYTES} bytes.")
    except RowError as error:
        row.error = row.error or error
        return
    content = archive.extractfile(member)
    assert content is not None  # a regular file
    if is_image:
        row.images.append(Image(content.read(), member.name))
    else:
        row.json = content.read()


def _finished(row: _Row, file: Path, split: str) -> Example | Refused:
    def build(fields: dict[str, Any]) -> Example:
        if row.error is not None:
            raise row.error
        if fields.get("image") is not None and not row.images:
            raise RowError("The row names an image and has none in the tar file.", "missing image")
        return questions.example(
            fields,
            id=id_of(fields) if "id" in fields else row.key,
            images=tuple(sorted(row.images, key=lambda image: image.path)),
            source=f"webdataset/{file.name.split('.tar')[0]}",
            split=split,
        )

    if row.json is None:
        error = row.error or RowError("The row has no json member.")
        return refusal(error, row.key, row.key, "")
    return json_row(row.json, row.key, build)
