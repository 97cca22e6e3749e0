"""Stops are seen when they are whole, however they are cut into tokens."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stagebeam.inference.stopping import Pieces, Watch, cut
from stagebeam.models.load import Loaded
from stagebeam.stages import TAGS

STOP = "</SUMMARY>"


@pytest.fixture(scope="module")
def by_bytes() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has some pieces of tags, as Llama's and Qwen's have."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["</", "SU", "MM", "SUMM", "AR", "ARY", "Y>", ">\u010a", "\u0120</", "\u0120a"]
    vocabulary = {piece: n for n, piece in enumerate([*letters, *pieces])}
    merges = [("<", "/"), ("S", "U"), ("M", "M"), ("SU", "MM"), ("A", "R"), ("AR", "Y")]
    merges += [("Y", ">"), (">", "\u010a"), ("\u0120", "</"), ("\u0120", "a")]
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize("text", ["a </SUMMARY>", "a</SUMMARY>\n", "äö 漢字 </SUMMARY> b"])
def test_pieces_make_up_the_text(text: str, by_bytes: PreTrainedTokenizerFast) -> None:
    pieces = Pieces(by_bytes)
    ids = by_bytes(text, add_special_tokens=False)["input_ids"]
    written = "".join(pieces[i] for i in ids)
    ascii_only = "".join(c for c in text if c.isascii())
    assert "".join(c for c in written if c.isascii()) == ascii_only
    assert pieces.text(ids) == text


def test_a_stop_is_seen_with_the_token_that_completes_it(
    by_bytes: PreTrainedTokenizerFast,
) -> None:
    pieces = Pieces(by_bytes)
    for text in ("word</SUMMARY>", "a </SUMMARY>\n", "</SUMMAR </SUMMARY>"):
        ids = by_bytes(text, add_special_tokens=False)["input_ids"]
        watch = Watch((STOP,))
        seen = [watch.add(pieces[i]) for i in ids]
        whole = [STOP in pieces.text(ids[: n + 1]) for n in range(len(ids))]
        assert seen.index(True) == whole.index(True) and not any(seen[: seen.index(True)])


@pytest.mark.parametrize("tag", TAGS)
def test_the_small_models_tags_are_seen(tag: str, loaded: Loaded) -> None:
    pieces, watch = Pieces(loaded.encoder.tokenizer), Watch((tag,))
    ids = loaded.encoder.ids(f"red {tag}")
    assert [watch.add(pieces[i]) for i in ids] == [False] * (len(ids) - 1) + [True]


def test_a_text_without_the_stop_is_never_stopped() -> None:
    watch = Watch((STOP,))
    near = ("</SUMMARY", " >", "</SUMMARx>", "/SUMMARY>")
    assert not any(watch.add(piece) for piece in itertools.chain(near, near))


def test_the_stop_that_ends_first_cuts() -> None:
    assert cut("One. Two</X> more.", ("</X>", ".")) == "One."
    assert cut("One</X> more.", ("</X>", ".")) == "One</X>"
    assert cut("One", ("</X>", ".")) is None
    assert Watch((".",)).add("One.")


def test_a_token_is_decoded_once(
    by_bytes: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = Pieces(by_bytes)
    ids = by_bytes("a </SUMMARY>", add_special_tokens=False)["input_ids"]
    for token in ids:
        pieces[token]
    monkeypatch.setattr(pieces, "text", None)
    for token in ids:
        pieces[token]
