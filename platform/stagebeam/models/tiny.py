"""A small untrained model in the same classes and the same folder form as the real one.

Nothing downstream asks whether a model is tiny: it is a Hugging Face folder with weights, a fast
tokenizer, an image processor and a chat template, made offline. What makes it learn in minutes on
a CPU (all gates open, wide initial weights, one token a word) is set here and nowhere else.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from stagebeam.stages import TAGS

IMAGE_SIDE = 48  # pixels
PATCH = 16  # pixels

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


def build_tiny(path: Path, corpus: Iterable[str], seed: int = 0, layers: int = 4) -> None:
    """Write an untrained tiny Mllama to `path`; its vocabulary is every word of `corpus`.

    `layers` counts the decoder's; the second and every third after it look at the image.

    The folder appears whole or not at all.
    """
    tokenizer = _tokenizer(corpus)
    processor = MllamaProcessor(
        image_processor=MllamaImageProcessorPil(
            size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}, max_image_tiles=1
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    torch.manual_seed(seed)
    model = MllamaForConditionalGeneration(_config(tokenizer, layers))
    for name, parameter in model.named_parameters():
        if re.search(r"(^|[._])gate(_attn|_ffn)?$", name):
            torch.nn.init.ones_(parameter)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    partial.rename(path)


def _tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word; a leading space is part of the word, so that text survives a round trip."""
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


def _config(tokenizer: PreTrainedTokenizerFast, layers: int) -> MllamaConfig:
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    assert image_id == len(tokenizer) - 1, "Mllama embeds the image token behind the vocabulary"
    text = MllamaTextConfig(
        vocab_size=image_id,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        cross_attention_layers=list(range(1, layers, 3)),
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = MllamaVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=4,
        image_size=IMAGE_SIDE,
        patch_size=PATCH,
        max_num_tiles=1,
        supported_aspect_ratios=[[1, 1]],
        intermediate_layers_indices=[0],
        vision_output_dim=128,
        initializer_range=0.1,
    )
    return MllamaConfig(vision_config=vision, text_config=text, image_token_index=image_id)
