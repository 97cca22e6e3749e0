"""Where files lie: a path on this machine's disks, NFS among them, or a URL of an object store.

A local place is a plain `pathlib.Path`, with nothing before it. A `RemotePath` has those of its
methods that are used for both, so most code need not ask which of the two it has. What an object
store does otherwise:

- There are no folders: making one does nothing, and one without files is not there.
- A file appears whole when its upload ends, or not at all. None can be appended to.
- Renaming is copying, which the store does by itself, and removing.

`pyarrow.fs` does the work, as in Ray Train. It takes keys, endpoint and region from the environment
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION, ...; Google's default
credentials) or from the machine's role; a URL holds none of them. It tries again by itself where a
store is busy.
"""

from __future__ import annotations

import fnmatch
import io
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, total_ordering
from pathlib import Path, PurePath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as arrow
from pydantic_core import core_schema

TEMPORARY = ".tmp"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Without the first, a file of a few bytes takes three requests.
_OPTIONS = {"s3": "?allow_delayed_open=true"}
_CHUNK = 16 << 20  # bytes of a file that are in memory while it is copied
_AT_ONCE = 32  # requests, which wait more than they work


def is_url(text: object) -> bool:
    """Whether a text of a recipe names a place by URL."""
    return isinstance(text, str) and _URL.match(text) is not None


@total_ordering
class RemotePath:
    """A file or folder of an object store. Every method that touches the store raises ValueError
    with one sentence where it cannot be reached, refuses, or has no such bucket."""

    # No dataclass: pydantic would make a mapping of it.
    __slots__ = ("key", "root")

    def __init__(self, root: str, key: str) -> None:
        self.root = root  # scheme and bucket, such as s3://bucket
        self.key = key  # without a slash at either end; empty for the bucket itself

    @classmethod
    def parse(cls, url: str) -> RemotePath:
        """Raises ValueError for a URL without a bucket, or with keys or settings in it."""
        parts = urlsplit(url)
        if not parts.netloc:
            raise ValueError(f"{url} names no bucket")
        if ":" in parts.netloc.rpartition("@")[0] or "?" in url or "#" in url:
            raise ValueError(
                f"{parts.scheme}://... holds more than a bucket and a path; keys and endpoint come "
                "from the environment"
            )
        key = "/".join(part for part in parts.path.split("/") if part)
        if ".." in key.split("/"):
            raise ValueError(f"{url} leads out of itself")
        return cls(f"{parts.scheme.lower()}://{parts.netloc}", key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other: RemotePath) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __str__(self) -> str:
        return f"{self.root}/{self.key}" if self.key else self.root

    def __truediv__(self, name: str | PurePath) -> RemotePath:
        below = PurePath(name).as_posix()
        return RemotePath(self.root, f"{self.key}/{below}" if self.key else below)

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.root, self.key.rpartition("/")[0])

    @property
    def parents(self) -> tuple[RemotePath, ...]:
        above: list[RemotePath] = []
        place = self
        while place.key:
            place = place.parent
            above.append(place)
        return tuple(above)

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def absolute(self) -> RemotePath:
        return self

    def resolve(self) -> RemotePath:
        """Without `..`, which a store would take for a name."""
        return RemotePath(self.root, posixpath.normpath(self.key))

    def is_absolute(self) -> bool:
        return True

    @property
    def filesystem(self) -> arrow.FileSystem:
        return _filesystem(self.root)[0]

    @property
    def path(self) -> str:
        """What the filesystem calls it."""
        base = _filesystem(self.root)[1]
        return f"{base}/{self.key}" if self.key else base

    def info(self) -> arrow.FileInfo:
        with _told(self):
            found: arrow.FileInfo = self.filesystem.get_file_info(self.path)
            return found

    def exists(self) -> bool:
        return bool(self.info().type != arrow.FileType.NotFound)

    def is_file(self) -> bool:
        return bool(self.info().type == arrow.FileType.File)

    def listed(self, *, recursive: bool = False) -> list[tuple[RemotePath, arrow.FileInfo]]:
        """What lies below, by name; nothing where there is no such folder."""
        selector = arrow.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        with _told(self):
            found = self.filesystem.get_file_info(selector)
        skip = len(_filesystem(self.root)[1]) + 1
        return sorted((RemotePath(self.root, info.path[skip:].strip("/")), info) for info in found)

    def iterdir(self) -> Iterator[RemotePath]:
        return iter([place for place, _ in self.listed()])

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Of a pattern without slashes."""
        assert "/" not in pattern
        return iter([p for p in self.iterdir() if fnmatch.fnmatchcase(p.name, pattern)])

    def open(self, mode: str = "rb") -> io.BufferedReader:
        assert mode == "rb", "a file is written in one piece"
        with _told(self):
            return io.BufferedReader(self.filesystem.open_input_file(self.path))

    def read_bytes(self) -> bytes:
        with _told(self), self.filesystem.open_input_stream(self.path) as stream:
            data: bytes = stream.read()
            return data

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        with _told(self), self.filesystem.open_output_stream(self.path) as stream:
            stream.write(data)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def upload(self, file: Path) -> None:
        """Make it a copy of a local file."""
        with _told(self):
            # In one thread: with more, pyarrow may wait for itself (apache/arrow issue 32372).
            arrow.copy_files(
                str(file),
                self.path,
                source_filesystem=arrow.LocalFileSystem(),
                destination_filesystem=self.filesystem,
                chunk_size=_CHUNK,
                use_threads=False,
            )
        # An upload that an error ends is completed with what had been read.
        if self.info().size != file.stat().st_size:
            self.unlink(missing_ok=True)
            raise ValueError(f"{self} could not be uploaded whole.")

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: a folder is there when a file in it is."""

    def rmdir(self) -> None:
        """Nothing, for the same reason."""

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with _told(self):
                self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise


@lru_cache(maxsize=16)
def _filesystem(root: str) -> tuple[arrow.FileSystem, str]:
    """The filesystem of a bucket and what it calls the bucket, which is there.

    Raises ValueError for a scheme that is not known here, or where the bucket cannot be found.
    """
    try:
        with _told(root):
            filesystem, base = arrow.FileSystem.from_uri(root + _OPTIONS.get(_scheme(root), ""))
            base = base.rstrip("/")
            found = filesystem.get_file_info(base).type
    except pa.ArrowInvalid:
        raise ValueError(f"{root} is of no kind of storage that is known here.") from None
    if found == arrow.FileType.NotFound:
        raise ValueError(f"There is no bucket {root}.")
    pa.set_io_thread_count(max(_AT_ONCE, pa.io_thread_count()))
    return filesystem, base


def _scheme(root: str) -> str:
    return root.partition(":")[0]


@contextmanager
def _told(place: RemotePath | str) -> Iterator[None]:
    """Turn what a store's client says into one sentence. A file that is not there stays a
    FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{place} {_why(str(place), str(error))}") from None


def _why(place: str, said: str) -> str:
    """The part of pyarrow's message that tells, such as `AWS Error NO_SUCH_KEY during HeadObject
    operation: ...`."""
    said = " ".join(re.sub(r"\(Request ID: .*?\)", "", said).split()).rstrip(".")
    if "ACCESS_DENIED" in said or "HTTP status 403" in said or "INVALID_ACCESS_KEY" in said:
        held = "set" if os.environ.get("AWS_ACCESS_KEY_ID") else "not set"
        keys = f" (AWS_ACCESS_KEY_ID is {held})" if _scheme(place) == "s3" else ""
        return f"refuses access{keys}: {_detail(said)}."
    if "NETWORK_CONNECTION" in said:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        at = f" at {endpoint} (AWS_ENDPOINT_URL)" if endpoint else ""
        return f"cannot be reached{at}: {_detail(said)}."
    return f"cannot be used: {_detail(said)}."


def _detail(said: str) -> str:
    return said.partition(" operation: ")[2] or said


class _Text:
    """How a recipe's text becomes a place, and back."""

    def __get_pydantic_core_schema__(self, _: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            _placed,
            handler.generate_schema(Path),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda place, info: str(place) if info.mode == "json" else place, info_arg=True
            ),
        )


# A field of this type takes a local path or a URL.
Place = Annotated[Path | RemotePath, _Text()]


def _placed(value: Any, as_path: Any) -> Place:
    if isinstance(value, RemotePath):
        return value
    return place_of(value) if is_url(value) else as_path(value)


def place_of(text: str | Place) -> Place:
    """The place that a text names. Raises ValueError as `RemotePath.parse` does."""
    if not isinstance(text, str):
        return text
    if not is_url(text):
        return Path(text)
    parts = urlsplit(text)
    if parts.scheme.lower() != "file":
        return RemotePath.parse(text)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ValueError(f"{text} names no file of this machine; write file:///folder")
    return Path(unquote(parts.path))


def on_disk(place: Place) -> Path:
    """Raises ValueError for a URL."""
    if isinstance(place, RemotePath):
        raise ValueError(f"{place} is a URL, and this needs a path on this machine's disks.")
    return place


def sizes(folder: Place) -> dict[str, int]:
    """The files of a folder, not of those below it, with their lengths in bytes; empty where there
    is no folder. One listing, not a question for each file."""
    if isinstance(folder, RemotePath):
        return {p.name: i.size for p, i in folder.listed() if i.type == arrow.FileType.File}
    try:
        with os.scandir(folder) as entries:
            return {e.name: e.stat().st_size for e in entries if e.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def open_parquet(file: Place, **local: Any) -> pq.ParquetFile:
    """A parquet file to read from; `local` are further options of one on a disk.

    Of a remote one, what a row group's columns take is asked for in few requests.
    """
    if not isinstance(file, RemotePath):
        return pq.ParquetFile(file, **local)
    with _told(file):
        return pq.ParquetFile(file.path, filesystem=file.filesystem, pre_buffer=True)


def open_parquets(files: Sequence[Place], **local: Any) -> list[pq.ParquetFile]:
    """The same for many, of which remote ones are opened at once."""
    if not any(isinstance(file, RemotePath) for file in files):
        return [open_parquet(file, **local) for file in files]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda file: open_parquet(file, **local), files))


def scratch_for(place: Place) -> Path:
    """A local file in which `place` may be made, for `put`; no two calls give the same, as an
    attempt that counts as lost may still be writing. On the same disk as a local place."""
    name = f"{place.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
    if isinstance(place, RemotePath):
        return Path(tempfile.gettempdir(), f"stagebeam-{name}")
    return place.with_name(name)


def put(scratch: Path, place: Place) -> None:
    """Give a finished file its place, in one step: a reader finds the whole of it or none."""
    if isinstance(place, RemotePath):
        place.upload(scratch)
        scratch.unlink()
    else:
        os.replace(scratch, place)


def write_whole(place: Place, data: bytes) -> None:
    """Write a file in one step: a reader finds the whole of it or none."""
    if isinstance(place, RemotePath):
        place.write_bytes(data)
        return
    scratch = scratch_for(place)
    try:
        scratch.write_bytes(data)
        os.replace(scratch, place)
    finally:
        scratch.unlink(missing_ok=True)


def move_files(pairs: Sequence[tuple[Place, Place]]) -> None:
    """Move files inside a store or on a disk, those that are still where they were. Killed amid, it
    may be called again; what was under the new name is replaced."""
    far = [(old, new) for old, new in pairs if isinstance(old, RemotePath)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda pair: _move_inside(*pair), far))
    for old, new in pairs:
        if isinstance(old, Path):
            with suppress(FileNotFoundError):
                os.replace(old, str(new))


def _move_inside(old: RemotePath, new: Place) -> None:
    assert isinstance(new, RemotePath)
    if old.exists():
        with _told(old):
            old.filesystem.move(old.path, new.path)


def remove_tree(folder: Place) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if not isinstance(folder, RemotePath):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(FileNotFoundError), _told(folder):
        folder.filesystem.delete_dir(folder.path)


def download(folder: RemotePath, target: Path) -> None:
    """Copy a remote folder's files to a local one; nothing where there are none."""
    target.mkdir(parents=True, exist_ok=True)
    for place, info in folder.listed(recursive=True):
        if info.type != arrow.FileType.File:
            continue
        file = target / place.key[len(folder.key) :].strip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        with _told(place):
            arrow.copy_files(
                place.path,
                str(file),
                source_filesystem=place.filesystem,
                destination_filesystem=arrow.LocalFileSystem(),
                chunk_size=_CHUNK,
            )


@contextmanager
def filled(folder: Place) -> Iterator[Path]:
    """A local folder for files that are to lie in `folder`: this itself, or one whose files are
    uploaded when the block ends well."""
    if not isinstance(folder, RemotePath):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="stagebeam-") as name:
        yield Path(name)
        for file in files_below(Path(name)):
            (folder / file.relative_to(name)).upload(file)


def files_below(folder: Path) -> list[Path]:
    """By name, without links."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
