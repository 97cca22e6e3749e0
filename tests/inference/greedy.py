"""Greedy answers of transformers, and tiny models as training exports them, for vLLM's tests."""

from __future__ import annotations

from pathlib import Path

import torch
from vllm_env import widen_heads

from stagebeam.models.encoder import EncodedRow
from stagebeam.models.folder import write_folder
from stagebeam.models.load import Loaded, load
from stagebeam.models.tiny.build import build_tiny
from stagebeam.records import Example, Message


def export(folder: Path, family: str, scenes: list[Example]) -> Loaded:
    """A tiny model that vLLM's CPU build can run, at `folder`."""
    start = folder.with_name(f"{folder.name}-start")
    build_tiny(start, [m.text for e in scenes for m in e.messages], family=family)
    widen_heads(start)
    trained = load(str(start), "cpu")
    write_folder(folder, trained.model, trained.encoder.processor, trained.model.state_dict())
    return load(str(folder), "cpu")


def greedy(
    loaded: Loaded, question: str, picture: Path, tokens: int, prefix: str = ""
) -> tuple[str, int, float]:
    """Text, tokens and log-probability by transformers' `generate`."""
    image = loaded.encoder.image(picture.read_bytes())
    ids = loaded.encoder.prompt_ids([Message("user", question)], [image])
    ids += loaded.encoder.ids(prefix)
    arrays = loaded.encoder.collate([EncodedRow(ids, ids, (image,))], left=True)
    batch = {key: torch.as_tensor(value) for key, value in arrays.items()}
    inputs = loaded.family.generation(loaded.model, batch, loaded.encoder.normalisation)
    out = loaded.model.generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    written = out.sequences[0, -len(out.logits) :]
    logprobs = torch.stack(out.logits)[:, 0].float().log_softmax(-1)
    text = loaded.encoder.tokenizer.decode(written, skip_special_tokens=True)
    return text, len(written), float(logprobs.gather(-1, written[:, None]).sum())
