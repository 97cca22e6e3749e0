"""Where the images that rows name are kept: a folder, or a zip file read in place.

Nothing outside of it is read, however a path is spelled.
"""

from __future__ import annotations

import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from pathlib import Path, PurePosixPath
from string import ascii_lowercase
from typing import Any, Protocol

from stagebeam.data.sources.joined_file import JoinedFile
from stagebeam.data.sources.row import RowError
from stagebeam.records import Image

MAX_IMAGE_BYTES = 256 << 20  # encoded; an entry of a zip or tar may claim any length
_DAMAGE = (
    zipfile.BadZipFile,  # the checksum is one of its reasons
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,  # encrypted
    NotImplementedError,  # compressed in an unknown way
)


class ImageStore(Protocol):
    def read(self, path: str) -> Image:
        """The image under a relative path; raises RowError if it is not to be had."""
        ...


def open_store(root: Path) -> ImageStore:
    """The folder, the zip file, or the zip file that lies there in parts (`NAME.part-aa`, ...).

    A zip file is opened once in a process. Raises ValueError if it is not there or not whole.
    """
    if root.is_dir():
        return _Folder(root.resolve())
    parts = [root] if root.is_file() else _parts(root)
    if not parts:
        raise ValueError(f"There is no image folder or zip file {root}.")
    stamp = tuple((part.stat().st_size, part.stat().st_mtime_ns) for part in parts)
    return _open_zip(root, tuple(parts), stamp)


def images_of(row: Mapping[str, Any], store: ImageStore) -> tuple[Image, ...]:
    """The images that a row names under `image`: none, a path, or a list of paths."""
    named = row.get("image")
    paths = [] if named is None else named if isinstance(named, list) else [named]
    if not all(isinstance(path, str) for path in paths):
        raise RowError("The row has an 'image' that is not text, or not a list of texts.")
    return tuple(map(store.read, paths))


def check_size(path: str, size: int) -> None:
    """Raises RowError if an image is too large to be read."""
    if size > MAX_IMAGE_BYTES:
        raise RowError(
            f"The image {path} has {size} bytes, more than {MAX_IMAGE_BYTES}.", "large image"
        )


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> Image:
        name = str(PurePosixPath(path))
        try:
            # resolve() follows links too.
            found = (self._root / name).resolve()
            if not found.is_relative_to(self._root):
                raise RowError(
                    f"The image path {name} leads out of the image folder.", "unsafe path"
                )
            if not found.is_file():
                raise RowError(f"There is no image file {name[:200]}.", "missing image")
            check_size(name, found.stat().st_size)
            return Image(found.read_bytes(), name)
        except (OSError, ValueError, RuntimeError):  # no permission, a NUL byte, a loop of links
            reason = f"The image file {name[:200]!r} cannot be read."
            raise RowError(reason, "missing image") from None


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        folders = {name.split("/", 1)[0] for name in archive.NameToInfo}
        # A common top folder is often left out by the rows.
        self._top = f"{folders.pop()}/" if len(folders) == 1 else ""

    def read(self, path: str) -> Image:
        pure = PurePosixPath(path)
        name = str(pure)
        if pure.is_absolute() or ".." in pure.parts:
            raise RowError(f"The image path {name} leads out of the zip file.", "unsafe path")
        entries = self._archive.NameToInfo
        entry = entries.get(name) or entries.get(self._top + name)
        if entry is None:
            raise RowError(f"There is no image {name[:200]} in the zip file.", "missing image")
        check_size(name, entry.file_size)
        try:
            return Image(self._archive.read(entry), name)
        except _DAMAGE as error:
            reason = f"The zip file's image {name} is damaged ({type(error).__name__})."
            raise RowError(reason, "broken image") from None


@lru_cache(maxsize=4)
def _open_zip(root: Path, parts: tuple[Path, ...], stamp: tuple[tuple[int, int], ...]) -> _Zip:
    """`stamp` is there for the cache: a file that has changed is opened again."""
    try:
        return _Zip(zipfile.ZipFile(io.BufferedReader(JoinedFile(parts), 1 << 16)))
    except OSError as error:
        raise ValueError(f"Cannot open the zip file {root}: {error.strerror}.") from None
    except (zipfile.BadZipFile, ValueError) as error:
        last = f" (its last part here is {parts[-1].name})" if len(parts) > 1 else ""
        raise ValueError(f"The zip file {root} is not whole: {error}{last}.") from None


def _parts(root: Path) -> list[Path]:
    """The parts in order; raises ValueError if one is absent or short."""
    form = re.compile(re.escape(root.name) + r"\.part-([a-z]+)")
    folder = root.parent.iterdir() if root.parent.is_dir() else ()
    found = {match[1]: file for file in folder if (match := form.fullmatch(file.name))}
    suffixes = sorted(found)
    if not suffixes:
        return []
    letters = product(ascii_lowercase, repeat=len(suffixes[0]))
    for suffix, expected in zip(suffixes, map("".join, letters), strict=False):
        if suffix != expected:
            raise ValueError(f"The part {root.name}.part-{expected} of {root} is not there.")
    parts = [found[suffix] for suffix in suffixes]
    sizes = [part.stat().st_size for part in parts]
    for part, size in zip(parts, sizes, strict=True):
        if size > sizes[0] or (size < sizes[0] and part is not parts[-1]):
            raise ValueError(f"The parts of {root} are not whole: {part.name} has an odd length.")
    return parts
