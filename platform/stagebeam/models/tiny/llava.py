"""Tiny LLaVA and LLaVA-NeXT: one tile of nine patches, or a thumbnail and up to four such tiles."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from stagebeam.models.tiny.words import CHAT_TEMPLATE, IMAGE, decoder_sizes

TILE_SIDE = 48  # pixels
PATCH = 16  # pixels
GRIDS = [[TILE_SIDE, 2 * TILE_SIDE], [2 * TILE_SIDE, TILE_SIDE], [2 * TILE_SIDE, 2 * TILE_SIDE]]


def build_llava(
    tokenizer: PreTrainedTokenizerFast, layers: int
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model and its processor, with the image processor of LLaVA-1.5."""
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**_sizes()), **_processing(tokenizer)
    )
    config = LlavaConfig(image_seq_length=(TILE_SIDE // PATCH) ** 2, **_parts(tokenizer, layers))
    return LlavaForConditionalGeneration(config), processor


def build_llava_next(
    tokenizer: PreTrainedTokenizerFast, layers: int
) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """The model and its processor."""
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(image_grid_pinpoints=GRIDS, **_sizes()),
        **_processing(tokenizer),
    )
    config = LlavaNextConfig(image_grid_pinpoints=GRIDS, **_parts(tokenizer, layers))
    return LlavaNextForConditionalGeneration(config), processor


def _sizes() -> dict[str, Any]:
    crop = {"height": TILE_SIDE, "width": TILE_SIDE}
    return {"size": {"shortest_edge": TILE_SIDE}, "crop_size": crop}


def _processing(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer,
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,  # CLIP's class token, which the strategy drops again
        "chat_template": CHAT_TEMPLATE,
    }


def _parts(tokenizer: PreTrainedTokenizerFast, layers: int) -> dict[str, Any]:
    text = LlamaConfig(**decoder_sizes(tokenizer, layers))
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,  # the features are those of the second
        num_attention_heads=4,
        image_size=TILE_SIDE,
        patch_size=PATCH,
        initializer_range=0.1,
    )
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
    }
