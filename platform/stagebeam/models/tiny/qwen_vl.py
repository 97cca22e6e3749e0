"""A tiny Qwen2.5-VL: a tower of two blocks, the first of which looks at windows of one token."""

from __future__ import annotations

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from stagebeam.models.families.qwen_vl import StillProcessor
from stagebeam.models.tiny.words import CHAT_TEMPLATE, IMAGE, decoder_sizes

VISION_START, VISION_END, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
IMAGE_PAD = StillProcessor.image_token
PATCH = 14  # pixels
TOKEN_SIDE = 2 * PATCH  # pixels that one image token stands for, each way
LEAST, MOST = (2 * TOKEN_SIDE) ** 2, (8 * TOKEN_SIDE) ** 2  # pixels of an image


def build(
    tokenizer: PreTrainedTokenizerFast, layers: int
) -> tuple[Qwen2_5_VLForConditionalGeneration, StillProcessor]:
    """The model, its embeddings untied, and its processor; the tokenizer gets Qwen's markers."""
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [VISION_START, VISION_END, IMAGE_PAD, VIDEO]},
    )
    tokenizer.image_token = IMAGE_PAD
    tokenizer.chat_template = CHAT_TEMPLATE.replace(IMAGE, VISION_START + IMAGE_PAD + VISION_END)
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": LEAST, "longest_edge": MOST}
    )
    model = Qwen2_5_VLForConditionalGeneration(_config(tokenizer, layers))
    return model, StillProcessor(tokenizer, images)


def _config(tokenizer: PreTrainedTokenizerFast, layers: int) -> Qwen2_5_VLConfig:
    sizes = decoder_sizes(tokenizer, layers)
    # pairs of a head's 16 numbers for time, height, width
    rope = {**sizes["rope_parameters"], "mrope_section": [2, 3, 3]}
    text = Qwen2_5_VLTextConfig(**{**sizes, "rope_parameters": rope})
    vision = Qwen2_5_VLVisionConfig(
        depth=2,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        patch_size=PATCH,
        window_size=TOKEN_SIDE,
        fullatt_block_indexes=[1],
        out_hidden_size=64,
        initializer_range=0.1,
    )

    def token(text: str) -> int:
        found = tokenizer.convert_tokens_to_ids(text)
        assert isinstance(found, int)
        return found

    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token(IMAGE_PAD),
        video_token_id=token(VIDEO),
        vision_start_token_id=token(VISION_START),
        vision_end_token_id=token(VISION_END),
        tie_word_embeddings=False,
    )
