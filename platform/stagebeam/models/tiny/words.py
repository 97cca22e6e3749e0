"""What the small models share: a tokenizer of one token a word, made offline, the chat template,
and the decoder's sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stagebeam.stages import TAGS

BEGIN, HEADER, END_HEADER = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"
END_OF_TURN, PAD, UNKNOWN, IMAGE = "<|eot_id|>", "<|pad|>", "<|unk|>", "<|image|>"
SPECIAL = (PAD, UNKNOWN, BEGIN, HEADER, END_HEADER, END_OF_TURN)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
)

_WORD = re.compile(r"\w+|[^\w\s]")


def word_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word; a leading space is part of the word, so that text survives a round trip,
    but for ends of lines, which are spaces here: a word behind one would be unknown."""
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    words = {word for text in corpus for word in _WORD.findall(text)} | {"user", "assistant"}
    pieces = [form for word in sorted(words) for form in (word, f"\u2581{word}")]
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, "\u2581", *pieces])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Replace(Regex(r"[^\S ]+"), " ")
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    # The tags swallow the space before them, so that a stage costs no token for white space.
    backend.add_tokens([AddedToken(t, lstrip=True, normalized=False) for t in TAGS])
    backend.add_special_tokens([AddedToken(IMAGE, special=True, normalized=False)])  # must be last
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        extra_special_tokens={"image_token": IMAGE},
    )


def decoder_sizes(tokenizer: PreTrainedTokenizerFast, layers: int) -> dict[str, Any]:
    """What the decoders of all small models have in common, for a config of transformers. The wide
    initial weights let it learn in minutes."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
