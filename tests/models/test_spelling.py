"""Chat markers in what people write: words to the model, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stagebeam.models.encoder import RowEncoder
from stagebeam.models.registry import family_of
from stagebeam.models.spelling import Spelling
from stagebeam.models.tiny.build import build_tiny
from stagebeam.records import Message
from stagebeam.stages import TAGS

FAMILIES = ("mllama", "llava", "llava_next", "qwen2_5_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RowEncoder:
    folder: Path = tmp_path_factory.mktemp("spelling") / request.param
    build_tiny(folder, ["say red now image eot_id"], family=request.param)
    return family_of(str(folder)).encoder(str(folder))


def controls(encoder: RowEncoder, ids: list[int]) -> list[int]:
    """The ids that steer a model, by the tokenizer's own account."""
    tokenizer = encoder.tokenizer
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return [i for i in ids if i in special - {tokenizer.unk_token_id}]


def asked(encoder: RowEncoder, *texts: str) -> list[int]:
    roles = ("system", "user", "assistant", "user")[-len(texts) :]
    turns = [Message(r, t) for r, t in zip(roles, texts, strict=True)]  # type: ignore[arg-type]
    return encoder.prompt_ids(turns, [])


def test_a_marker_in_any_turn_is_no_control_token(encoder: RowEncoder) -> None:
    plain = controls(encoder, asked(encoder, "say", "say", "say", "say"))
    assert plain
    for marker in encoder.spelling.markers:
        for turn in range(4):
            texts = ["say"] * 4
            texts[turn] = f"say {marker}{marker} now"
            assert controls(encoder, asked(encoder, *texts)) == plain, (marker, turn)


def test_markers_within_markers_are_none_either(encoder: RowEncoder) -> None:
    plain = controls(encoder, asked(encoder, "say"))
    nested = "<|eot<|image|>_id|> <|image<|eot_id|>|> <|im<|image|>age|>"
    assert controls(encoder, asked(encoder, nested)) == plain
    assert controls(encoder, encoder.text_ids(nested)) == []


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_no_text_made_of_markers_steers(encoder: RowEncoder, data: Any) -> None:
    pieces = st.sampled_from(
        [*encoder.spelling.markers, *TAGS, " ", "<|", "|>", "red", "\U000f0000"]
    )
    text = "".join(data.draw(st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=8)))
    assert controls(encoder, asked(encoder, text)) == controls(encoder, asked(encoder, "say"))
    assert controls(encoder, encoder.text_ids(text)) == []


def test_ordinary_text_has_the_ids_that_training_gives_it(encoder: RowEncoder) -> None:
    turns = [Message("user", "say <SUMMARY> red </SUMMARY> < | now"), Message("assistant", "red")]
    again = [*turns, Message("user", "now?")]
    assert encoder.prompt_ids(again, []) == encoder.ids(encoder.render(again, 0, answer_next=True))
    assert encoder.text_ids("say <SUMMARY> red") == encoder.ids("say <SUMMARY> red")


def test_what_was_written_is_still_there(encoder: RowEncoder) -> None:
    """The letters of a marker that the vocabulary has."""
    tokenizer = encoder.tokenizer
    word = tokenizer.convert_tokens_to_ids("image")
    assert encoder.text_ids("say <|image|> now").count(word) == 1


def test_text_may_hold_the_signs_that_mask_markers(encoder: RowEncoder) -> None:
    marker = encoder.spelling.markers[0]
    masked = encoder.spelling.mask([f"\U000f0000{marker}", "\U000f00011\U000f0001"])
    assert masked.sign == "\U000f0002"
    assert masked.texts[1] == "\U000f00011\U000f0001"


def test_a_byte_level_tokenizer_keeps_the_letters() -> None:
    """As those of Llama 3 and Qwen: what is spelled out is decoded to what was written."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["say <|im_end|> now"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    )
    backend.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=False)])
    backend.add_tokens([AddedToken("<image>", special=False, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    spelling = Spelling(tokenizer, "<image>")
    text = "say <|im_end|><image> now"
    masked = spelling.mask([text])

    def tokenise(piece: str) -> list[int]:
        return list(tokenizer(piece, add_special_tokens=False)["input_ids"])

    ids = spelling.ids(masked.texts[0], masked.sign, tokenise)
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<image>"]))
    assert tokenizer.decode(ids) == text


def test_a_template_that_refuses_a_conversation_is_one_sentence(
    encoder: RowEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = "{{ raise_exception('Roles must alternate.') }}"
    monkeypatch.setattr(encoder.tokenizer, "chat_template", strict)
    if getattr(encoder.processor, "chat_template", None):
        monkeypatch.setattr(encoder.processor, "chat_template", strict)
    with pytest.raises(
        ValueError,
        match=r"^The model's chat template refuses the conversation: Roles must alternate\.$",
    ):
        asked(encoder, "say")
