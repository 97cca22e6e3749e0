"""Opening a model folder: weights checked, encoder beside them, fingerprint of the whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from stagebeam.local_copy import fetched
from stagebeam.models.encoder import RowEncoder
from stagebeam.models.family import Family
from stagebeam.models.registry import family_of


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run, in evaluation mode."""

    model: Any  # of transformers
    family: Family
    encoder: RowEncoder
    fingerprint: str


def load(path: str, device: str = "auto", dtype: torch.dtype | None = None) -> Loaded:
    """Open `path` on a device (`auto` is CUDA where there is one), in its own dtype by default.

    Raises ValueError where the folder is absent or of no known family, or where a weight is
    missing, unexpected or of another shape: such a weight would be left freshly initialised,
    silently (transformers issues 45313, 45397).
    """
    family = family_of(path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_weights(path, dtype or "auto")
    model.to(device).eval()
    return Loaded(model, family, family.encoder(path), fingerprint(path))


def open_weights(path: str, dtype: torch.dtype | str) -> Any:
    """A model of transformers with the weights in `path`, read from safetensors alone: other
    formats are pickles, and what a folder brings along as code is not run.

    Raises ValueError where there are no such weights, or where they do not fit.
    """
    folder = fetched(path)
    try:
        opened: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except OSError as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{path} has no weights that can be read as safetensors: {why}") from None
    model, info = opened
    check_loading(path, info)
    return model


def check_loading(path: str, info: dict[str, object]) -> None:
    """Raises ValueError if `from_pretrained`'s report names any weight."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(kind):
            raise ValueError(f"The weights in {path} do not fit the model: {kind} {info[kind]}.")


def fingerprint(path: str) -> str:
    """Twelve hex digits of everything in a model folder that decides an answer; a hub name as is.

    Weight files of more than 64 MB are represented by their size and first and last megabyte.
    """
    folder = Path(fetched(path))
    if not folder.is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in {".json", ".jinja", ".safetensors", ".model"}:
            digest.update(file.name.encode())
            digest.update(_sample(file))
    return digest.hexdigest()[:12]


def _sample(file: Path) -> bytes:
    megabyte = 1 << 20
    size = file.stat().st_size
    if size <= 64 * megabyte:
        return file.read_bytes()
    with file.open("rb") as stream:
        head = stream.read(megabyte)
        stream.seek(-megabyte, 2)
        return head + stream.read() + str(size).encode()
