"""A tiny Mllama: the second decoder layer and every third after it look at the image."""

from __future__ import annotations

import re

import torch
from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from stagebeam.models.tiny.words import CHAT_TEMPLATE, IMAGE, decoder_sizes

IMAGE_SIDE = 48  # pixels
PATCH = 16  # pixels


def build(
    tokenizer: PreTrainedTokenizerFast, layers: int
) -> tuple[MllamaForConditionalGeneration, MllamaProcessor]:
    """The model with all its gates open, and its processor."""
    processor = MllamaProcessor(
        image_processor=MllamaImageProcessorPil(
            size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}, max_image_tiles=1
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    model = MllamaForConditionalGeneration(_config(tokenizer, layers))
    for name, parameter in model.named_parameters():
        if re.search(r"(^|[._])gate(_attn|_ffn)?$", name):
            torch.nn.init.ones_(parameter)
    return model, processor


def _config(tokenizer: PreTrainedTokenizerFast, layers: int) -> MllamaConfig:
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    assert image_id == len(tokenizer) - 1, "Mllama embeds the image token behind the vocabulary"
    crossing = {"vocab_size": image_id, "cross_attention_layers": list(range(1, layers, 3))}
    text = MllamaTextConfig(**{**decoder_sizes(tokenizer, layers), **crossing})
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
