"""A round's questions from parts have the ids that each has alone, whatever the texts and whoever
tokenises them."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
from asking import prompt_of
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stagebeam.inference import questions
from stagebeam.inference.questions import question_ids
from stagebeam.inference.reading import Look
from stagebeam.inference.types import JudgeRequest, Prompt
from stagebeam.inference.wording import verdict_messages, wording
from stagebeam.models.encoder import RowEncoder
from stagebeam.models.families.mllama import MllamaEncoder
from stagebeam.models.load import Loaded
from stagebeam.records import Example, Message
from stagebeam.stages import Stage

PLAIN = ("<SUMMARY> I will count. </SUMMARY>", "<SUMMARY> red </SUMMARY>", "<SUMMARY> a </SUMMARY>")
AWKWARD = {
    "plain": PLAIN,
    "alike": (PLAIN[0], PLAIN[1], PLAIN[0]),
    "spaces at the ends": ("  red. ", "\n red\n\n", "red  "),
    "one ends in a space": ("red.", "blue", "red. "),
    "our own words": ("Candidate 2: red", "1 Candidate", "Candidate"),
    "digits and signs": ("12", ":1", "2 1: ?"),
    "letters of no vocabulary": ("ﬁ ﬂ e\u0301", "日本 語", "\U0001f600\u200d"),
    "private letters": ("\ue000", "\uf8ff red \ue000", "\U000f0000"),
    "empty": ("", " ", "red"),
    "a marker": ("Say <|eot_id|> now", "red", "<|image|>"),
}
# as Llama 3 and Qwen cut texts
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
STRIPPING = (
    "{% for message in messages %}<|start|>{% for part in message['content'] %}"
    "{{ part['text'] | trim if part['type'] == 'text' else '<|image|>' }}{% endfor %}<|eot_id|>"
    "{% endfor %}<|start|>"
)
SPECIAL = ["<|start|>", "<|eot_id|>", "<|image|>", "<unk>"]


def one_by_one(encoder: RowEncoder, request: JudgeRequest, look: Look) -> list[list[int]]:
    texts = request.candidates
    return [
        encoder.prompt_ids(verdict_messages(request, texts[a], texts[b]), look.images)
        for a, b in permutations(range(len(texts)), 2)
    ]


def at_once(encoder: RowEncoder, request: JudgeRequest, look: Look) -> list[list[int]]:
    return question_ids(
        encoder, request, list(permutations(range(len(request.candidates)), 2)), look
    )


@pytest.mark.parametrize("stage", [*Stage, None])
@pytest.mark.parametrize("texts", AWKWARD)
def test_ids_of_a_round_are_those_of_its_questions(
    texts: str, stage: Stage | None, loaded: Loaded, scenes: list[Example]
) -> None:
    seeing = next(e for e in scenes if e.images)
    look = Look(tuple(loaded.encoder.image(i.bytes) for i in seeing.images), b"")
    request = JudgeRequest(prompt_of(seeing), stage, PLAIN[0] if stage else "", AWKWARD[texts], ())
    found = at_once(loaded.encoder, request, look)
    assert found == one_by_one(loaded.encoder, request, look)


def test_a_question_that_repeats_itself_or_has_markers(loaded: Loaded) -> None:
    nothing = Look((), b"")
    request = JudgeRequest(Prompt((Message("user", "Q"),)), Stage.SUMMARY, "", PLAIN[:2], ())
    itself = verdict_messages(request, *PLAIN[:2])[-1].text
    for text in (itself, f"{itself} {itself}", "Say <|eot_id|> now", "Candidate 1:", ""):
        talk = (Message("user", itself), Message("assistant", itself), Message("user", text))
        asked = replace(request, prompt=Prompt(talk))
        assert at_once(loaded.encoder, asked, nothing) == one_by_one(loaded.encoder, asked, nothing)


@pytest.fixture(params=["byte-level", "sentencepiece", "across words"])
def other(request: pytest.FixtureRequest) -> RowEncoder:
    return encoder_like(request.param)


def encoder_like(kind: str) -> RowEncoder:
    """Of a tokenizer unlike the tiny models', and with a template that strips every message."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "byte-level":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        before = [normalizers.Prepend("▁")] if kind == "sentencepiece" else []
        tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Replace("▁", " ")
    if kind == "sentencepiece":  # while it is trained, words are apart
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    corpus = [*wording(), *(text for texts in AWKWARD.values() for text in texts)] * 9
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL, show_progress=False)
    )
    if kind == "sentencepiece":
        tokenizer.pre_tokenizer = None
    return encoder_of(tokenizer)


def encoder_of(backend: Tokenizer) -> RowEncoder:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<|eot_id|>"
    )
    tokenizer.chat_template = STRIPPING

    def template(conversation: Any, **options: Any) -> Any:
        return tokenizer.apply_chat_template(conversation, **options)

    encoder = MllamaEncoder("nowhere")
    encoder.__dict__["processor"] = SimpleNamespace(
        tokenizer=tokenizer, image_token="<|image|>", apply_chat_template=template
    )
    return encoder


@pytest.mark.parametrize("texts", [texts for texts in AWKWARD if texts != "a marker"])
def test_other_tokenizers(texts: str, other: RowEncoder) -> None:
    nothing = Look((), b"")
    prompt = Prompt((Message("user", " How many ? "),))
    request = JudgeRequest(prompt, Stage.SUMMARY, PLAIN[0], AWKWARD[texts], ())
    assert at_once(other, request, nothing) == one_by_one(other, request, nothing)


def test_a_question_that_was_quoted_before() -> None:
    """And that the template strips only where it stands last."""
    encoder, nothing = encoder_like("byte-level"), Look((), b"")
    blank = JudgeRequest(Prompt((Message("user", "Q"),)), Stage.SUMMARY, "", ("red", "blue "), ())
    quoted = verdict_messages(blank, *blank.candidates)[-1].text + "is what you asked."
    asked = replace(blank, prompt=Prompt((Message("user", quoted), Message("user", "Q"))))
    assert at_once(encoder, asked, nothing) == one_by_one(encoder, asked, nothing)


@pytest.mark.parametrize("kind", ["tiny", "byte-level", "sentencepiece"])
def test_candidates_are_tokenised_once(
    kind: str, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first and as the second, and one whole question beside them."""
    encoder = loaded.encoder if kind == "tiny" else encoder_like(kind)
    calls: list[str] = []
    ids = encoder.ids
    monkeypatch.setattr(encoder, "ids", lambda text: calls.append(text) or ids(text))
    request = JudgeRequest(Prompt((Message("user", "Q"),)), Stage.SUMMARY, "", PLAIN, ())
    at_once(encoder, request, Look((), b""))
    assert [sum(text in call for call in calls) for text in PLAIN] == [3, 3, 2]
    assert sum("Which candidate" in call for call in calls) == 1


def test_a_label_that_is_no_border_is_seen(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "LABEL", "Candi")
    request = JudgeRequest(Prompt((Message("user", "Q"),)), Stage.SUMMARY, "", PLAIN, ())
    nothing = Look((), b"")
    found = at_once(loaded.encoder, request, nothing)
    assert found == one_by_one(loaded.encoder, request, nothing)
