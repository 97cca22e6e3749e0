"""Local folders that stand for remote ones, for code that needs files on a disk."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from stagebeam.storage import Place, RemotePath, download, files_below, is_url, place_of

log = logging.getLogger(__name__)

SAVE_EVERY_S = 30.0


@contextmanager
def working_copy(place: Place, save_every: float = SAVE_EVERY_S) -> Iterator[Path]:
    """A local folder to work in as if it were `place`: this itself, or a copy of its files, which
    goes back to it every `save_every` seconds and at the end, whether that is good or bad.

    A process that is killed loses what it did since the copy was last saved. Raises ValueError
    where the store cannot be used, at the start and at the end.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="stagebeam-") as name:
        download(place, Path(name))
        saved = _Saved(Path(name), place)
        ended = threading.Event()
        saver = threading.Thread(target=saved.keep_saving, args=(save_every, ended), daemon=True)
        saver.start()
        try:
            yield Path(name)
        finally:
            ended.set()
            saver.join()
            saved.save()


class _Saved:
    """What of a folder is in the store already."""

    def __init__(self, folder: Path, place: RemotePath) -> None:
        self._folder, self._place = folder, place
        self._there = {file: _state(file) for file in files_below(folder)}

    def keep_saving(self, every: float, ended: threading.Event) -> None:
        while not ended.wait(every):
            try:
                self.save()
            except (ValueError, OSError) as error:  # a file may go while it is looked at
                log.warning("%s could not be brought up to date: %s", self._place, error)

    def save(self) -> None:
        """Upload what has changed.

        Lines are appended meanwhile, to `traces.jsonl` before the line in `answers.jsonl` that
        names the trace. So that the store never has this without that, files are copied in the
        order of their names and uploaded in the opposite one.
        """
        with tempfile.TemporaryDirectory(prefix="stagebeam-") as name:
            changed: list[tuple[Path, Path, tuple[int, int]]] = []
            for number, file in enumerate(files_below(self._folder)):
                state = _state(file)
                if state != self._there.get(file):
                    changed.append((file, Path(shutil.copy(file, f"{name}/{number}")), state))
            for file, copy, state in reversed(changed):
                (self._place / file.relative_to(self._folder)).upload(copy)
                self._there[file] = state


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def fetched(model: str) -> str:
    """The local folder of a model: `model` as it is, or the copy of the files at that URL, which is
    made once on each machine and again when they have changed.

    Copies lie in `stagebeam` below XDG_CACHE_HOME or `~/.cache`. Raises ValueError where nothing is
    at the URL or it cannot be read.
    """
    if not is_url(model):
        return model
    place = place_of(model)
    if isinstance(place, Path):
        return str(place)
    listed = [(str(p), info.size, info.mtime_ns) for p, info in place.listed(recursive=True)]
    if not listed:
        raise ValueError(f"There is no model folder at {model}.")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "stagebeam")
    folder = home / hashlib.sha256(repr(listed).encode()).hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            download(place, partial)
            partial.rename(folder)
    return str(folder)
