"""The tiny model: a tokenizer that loses nothing, in a folder like any other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from stagebeam.inference.wording import wording
from stagebeam.models.tiny.build import build_tiny
from stagebeam.models.tiny.words import IMAGE
from stagebeam.records import Example
from stagebeam.stages import TAGS

_BEFORE_TAG = re.compile(rf"\s+(?=(?:{'|'.join(map(re.escape, TAGS))}))")


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_folder).tokenizer


def test_text_survives_a_round_trip_up_to_white_space_before_tags(
    tokenizer: Any, scenes: list[Example]
) -> None:
    for text in (message.text for example in scenes for message in example.messages):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert back == _BEFORE_TAG.sub("", text)
        assert tokenizer(back, add_special_tokens=False)["input_ids"] == ids


def test_each_tag_is_one_ordinary_token(tokenizer: Any) -> None:
    for tag in TAGS:
        assert len(tokenizer(f" {tag}", add_special_tokens=False)["input_ids"]) == 1
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    assert not any(added[tag].special for tag in TAGS)


def test_the_image_token_is_the_last_id(tokenizer: Any) -> None:
    assert (
        tokenizer.convert_tokens_to_ids(IMAGE)
        == len(tokenizer) - 1
        == max(tokenizer.get_vocab().values())
    )


def test_the_vocabulary_covers_what_judges_are_asked(tokenizer: Any) -> None:
    for text in wording():
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_a_word_that_the_corpus_lacks_is_unknown(tokenizer: Any) -> None:
    assert tokenizer.unk_token_id in tokenizer("zebra")["input_ids"]


def test_a_word_behind_the_end_of_a_line_is_known(tokenizer: Any) -> None:
    lines, words = "I will count.\n\nThere is 3.\n3", "I will count. There is 3. 3"
    assert tokenizer(lines).input_ids == tokenizer(words).input_ids
    assert tokenizer.unk_token_id not in tokenizer(lines).input_ids


def test_the_folder_opens_with_every_weight_in_place(tiny_folder: Path) -> None:
    opened: Any = AutoModelForImageTextToText.from_pretrained(tiny_folder, output_loading_info=True)
    _, info = opened
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_every_gate_is_open(tiny_folder: Path) -> None:
    """Closed, as transformers leaves them, the untrained model would not see the image."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    gates = [p for name, p in model.named_parameters() if "gate" in name and p.numel() == 1]
    assert gates and all(gate.item() == 1 for gate in gates)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_tiny(tmp_path / name, ["red green"], seed=seed, layers=2)
    a, b, c = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict() for name in "abc"
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
