"""LLaVA and LLaVA-NeXT, both halves, against stock transformers run row by row."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from logits import CLOSE, distance, expect_each
from PIL import Image as PilImage
from tokenizers.processors import TemplateProcessing
from torch.utils.flop_counter import FlopCounterMode

from stagebeam.models.encoder import IGNORE, Arrays, EncodedRow
from stagebeam.models.family import Tensors
from stagebeam.models.flops import scores
from stagebeam.models.load import Loaded, load
from stagebeam.models.tiny.build import build_tiny
from stagebeam.models.tiny.words import BEGIN
from stagebeam.records import Example, Image, Message

QUESTION = (Message("user", "What colour is the circle?"), Message("assistant", "red"))
CROPPED = [(48, 48), (90, 48), (48, 130), (100, 100), (31, 200)]  # width, height


@pytest.fixture(scope="module", params=["llava", "llava_next"])
def built(
    request: pytest.FixtureRequest, scenes: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> Loaded:
    folder = tmp_path_factory.mktemp("models") / request.param
    words = [m.text for e in scenes for m in (*e.messages, *QUESTION)]
    build_tiny(folder, words, layers=2, family=request.param)
    return load(str(folder), "cpu")


@pytest.fixture(scope="module")
def rows(scenes: list[Example]) -> list[Example]:
    """With one image, none, one and two, of different lengths."""
    one, two = (next(e for e in scenes if e.source == f"scenes/{s}") for s in ("shapes", "chart"))
    both = Example("both", one.images + noise(130, 100).images, one.messages, "test")
    return [one, next(e for e in scenes if not e.images), two, both]


def noise(width: int, height: int) -> Example:
    """A row about an image of this many pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, "PNG")
    return Example("noise", (Image(buffer.getvalue()),), QUESTION, "test")


def tensors(arrays: Arrays) -> Tensors:
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def forward(built: Loaded, arrays: Arrays) -> torch.Tensor:
    return built.family.forward(built.model, tensors(arrays), built.encoder.normalisation)


def ours(built: Loaded, rows: Sequence[Example]) -> list[torch.Tensor]:
    """Logits [T, V] of each row of one batch, padding cut off."""
    arrays, refused = built.encoder(rows)
    assert not refused
    with torch.no_grad():
        logits = forward(built, arrays)
    lengths = arrays["attention_mask"].sum(1)
    return [row[:length] for row, length in zip(logits, lengths, strict=True)]


def stock_inputs(built: Loaded, row: Example, messages: Sequence[Message], **render: bool) -> Any:
    """What transformers' own processor makes of a row."""
    encoder = built.encoder
    pictures = [PilImage.open(io.BytesIO(image.bytes)) for image in row.images]
    inputs = encoder.processor(
        text=encoder.render(messages, len(row.images), **render),
        images=pictures or None,
        add_special_tokens=False,
        return_tensors="pt",
    )
    assert ("pixel_values" in inputs) == bool(pictures)
    return inputs


def stock(built: Loaded, row: Example) -> torch.Tensor:
    """Logits [T, V] by transformers' own processor and forward."""
    with torch.no_grad():
        inputs = stock_inputs(built, row, row.messages, answer_next=False)
        logits: torch.Tensor = built.model(**inputs).logits[0]
        return logits


def test_a_mixed_batch_gives_each_row_the_logits_that_it_has_alone(
    built: Loaded, rows: list[Example]
) -> None:
    expect_each(ours(built, rows), rows, lambda row: ours(built, [row])[0])


def test_every_row_of_a_mixed_batch_equals_stock_transformers(
    built: Loaded, rows: list[Example]
) -> None:
    expect_each(ours(built, rows), rows, lambda row: stock(built, row))


@pytest.mark.parametrize(("width", "height"), CROPPED)
def test_an_image_of_any_shape_has_stocks_tokens_and_logits(
    built: Loaded, width: int, height: int
) -> None:
    row = noise(width, height)
    ids = stock_inputs(built, row, row.messages, answer_next=False)["input_ids"]
    assert built.encoder.encode(row).input_ids == ids[0].tolist()
    assert distance(ours(built, [row])[0], stock(built, row)) < CLOSE


def test_shapes_of_images_give_llava_next_rows_of_different_lengths(built: Loaded) -> None:
    """Or else the test above would not see the unpadding."""
    counts = [len(built.encoder.encode(noise(*size)).input_ids) for size in CROPPED]
    assert (len(set(counts)) > 2) == (built.family.name == "llava_next")


def test_the_image_and_the_order_of_images_matter(built: Loaded, rows: list[Example]) -> None:
    """Or else the equalities above would say nothing about images."""
    one, both = rows[0], rows[3]
    other = replace(one, images=rows[2].images)
    assert distance(ours(built, [one])[0], ours(built, [other])[0]) > 0.1
    square = (both.images[0], rows[2].images[0])  # as many tokens in either order
    a, b = (ours(built, [replace(both, images=i)])[0] for i in (square, square[::-1]))
    assert distance(a, b) > 0.1


def test_a_batch_holds_the_images_that_there_are_and_a_blank_one_if_there_are_none(
    built: Loaded, rows: list[Example]
) -> None:
    # LLaVA-NeXT: a thumbnail and two tiles, but four tiles for the last and largest
    tiles, blank = (3 + 3 + 3 + 5, 3) if built.family.name == "llava_next" else (4, 1)
    mixed, _ = built.encoder(rows)
    assert mixed["pixel_values"].shape == (tiles, 3, 48, 48)
    assert mixed["pixel_values"].dtype == np.uint8
    text, _ = built.encoder([rows[1]])
    assert text["pixel_values"].shape == (blank, 3, 48, 48) and not text["pixel_values"].any()


def test_a_batch_of_text_runs_the_tower_and_the_projector(
    built: Loaded, rows: list[Example]
) -> None:
    ran: list[str] = []
    inner = built.model.model
    hooks = [
        getattr(inner, name).register_forward_hook(lambda *_, name=name: ran.append(name))
        for name in ("vision_tower", "multi_modal_projector")
    ]
    logits = ours(built, [rows[1], rows[1]])
    for hook in hooks:
        hook.remove()
    assert ran == ["vision_tower", "multi_modal_projector"]
    for row in logits:
        assert distance(row, stock(built, rows[1])) < CLOSE


def gradients(built: Loaded, rows: Sequence[Example]) -> dict[str, float]:
    """The largest gradient of each parameter that has one."""
    built.model.zero_grad()
    forward(built, built.encoder(rows)[0]).logsumexp(-1).sum().backward()
    found = {
        name: float(parameter.grad.abs().max())
        for name, parameter in built.model.named_parameters()
        if parameter.grad is not None
    }
    built.model.zero_grad()
    return found


def test_a_batch_of_text_has_the_gradients_of_one_with_images_zero_where_it_has_none(
    built: Loaded, rows: list[Example]
) -> None:
    seeing, reading = gradients(built, [rows[0]]), gradients(built, [rows[1]])
    assert seeing.keys() == reading.keys()
    visual = [n for n in seeing if built.family.group_of(built.model.config, n) != "language"]
    assert "model.multi_modal_projector.linear_1.weight" in visual
    assert ("model.image_newline" in visual) == (built.family.name == "llava_next")
    # A key's bias moves all scores of a query alike, so its gradient is a rounding error.
    assert all(seeing[n] > 1e-3 for n in visual if "k_proj.bias" not in n)
    assert all(reading[n] == 0 for n in visual)


@pytest.mark.parametrize("frozen", [{"vision"}, {"vision", "language"}, {"vision", "projector"}])
def test_groups_can_be_frozen(built: Loaded, rows: list[Example], frozen: set[str]) -> None:
    config, family = built.model.config, built.family
    for name, parameter in built.model.named_parameters():
        parameter.requires_grad = family.group_of(config, name) not in frozen
    try:
        for batch in (rows, [rows[1]]):
            trained = {family.group_of(config, name) for name in gradients(built, batch)}
            assert trained == {"vision", "projector", "language"} - frozen
    finally:
        built.model.requires_grad_(True)


def test_the_groups_hold_every_parameter_and_no_prefix_too_many(built: Loaded) -> None:
    names = [name for name, _ in built.model.named_parameters()]
    groups = built.family.groups(built.model.config)
    assert {built.family.group_of(built.model.config, n) for n in names} == set(groups)
    for prefix in (p for prefixes in groups.values() for p in prefixes):
        assert any(name.startswith(prefix) for name in names), prefix


def prompts(built: Loaded, rows: Sequence[Example]) -> list[EncodedRow]:
    encoded = []
    for row in rows:
        images = tuple(built.encoder.image(image.bytes) for image in row.images)
        ids = built.encoder.prompt_ids(row.messages[:1], images)
        encoded.append(EncodedRow(ids, [IGNORE] * len(ids), images))
    return encoded


def generated(built: Loaded, rows: Sequence[EncodedRow]) -> torch.Tensor:
    """Ten greedy tokens after each prompt."""
    batch = tensors(built.encoder.collate(rows, left=True))
    with torch.no_grad():
        kwargs = built.family.generation(built.model, batch, built.encoder.normalisation)
        out = built.model.generate(**kwargs, max_new_tokens=10, min_new_tokens=10, do_sample=False)
    assert torch.equal(out[:, :-10], batch["input_ids"])
    return out[:, -10:]


def test_generation_of_a_mixed_batch_equals_stock_generation_of_each_row(
    built: Loaded, rows: list[Example]
) -> None:
    together = generated(built, prompts(built, rows))
    assert len({tuple(row) for row in together.tolist()}) > 1
    for row, tokens in zip(rows, together, strict=True):
        inputs = stock_inputs(built, row, row.messages[:1], answer_next=True)
        alone = built.model.generate(
            **inputs, max_new_tokens=10, min_new_tokens=10, do_sample=False
        )
        assert torch.equal(tokens, alone[0, -10:])


def test_generation_of_text_alone(built: Loaded, rows: list[Example]) -> None:
    one = generated(built, prompts(built, [rows[1]]))
    assert torch.equal(one, generated(built, prompts(built, [rows[1], rows[0]]))[:1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_conversations_that_share_a_row_have_the_logits_that_they_have_alone(
    built: Loaded, rows: list[Example], attention: str
) -> None:
    encoded = [built.encoder.encode(row) for row in rows]
    lengths = [len(row.input_ids) for row in encoded]
    packed = built.encoder.collate_packed(encoded, lengths[0] + lengths[1] + lengths[2])
    assert "attention_mask" not in packed
    # The first three fill a row, the fourth begins the next and leaves the rest of it empty.
    assert packed["input_ids"].shape == (2, sum(lengths[:3]))
    before = built.model.config._attn_implementation
    built.model.set_attn_implementation(attention)
    try:
        with torch.no_grad():
            logits = forward(built, packed)
    finally:
        built.model.set_attn_implementation(before)
    assert logits.isfinite().all()
    together = [*logits[0].split(lengths[:3]), logits[1, : lengths[3]]]
    for row, found in zip(rows, together, strict=True):
        assert distance(found, ours(built, [row])[0]) < CLOSE


def test_packing_takes_the_first_row_with_room_and_keeps_labels_and_images_with_their_text(
    built: Loaded, rows: list[Example]
) -> None:
    encoded = [built.encoder.encode(rows[i]) for i in (3, 0, 1)]
    a, b, c = (len(row.input_ids) for row in encoded)
    packed = built.encoder.collate_packed(encoded, a + c)
    assert a + b > a + c, "the second must not fit beside the first"
    assert packed["position_ids"].tolist() == [
        [*range(a), *range(c)],
        [*range(b), *[0] * (a + c - b)],
    ]
    assert packed["labels"][0].tolist() == encoded[0].labels + encoded[2].labels
    assert (packed["labels"][1, b:] == IGNORE).all()
    images = [*encoded[0].images, *encoded[1].images]
    stacked = built.encoder.stack_images([images])
    assert np.array_equal(packed["pixel_values"], stacked["pixel_values"])
    with pytest.raises(ValueError, match=f"A row of {a} tokens does not fit into a width of"):
        built.encoder.collate_packed(encoded, a - 1)


class Whole(torch.nn.Module):
    """The family's forward as one module, as the flop counter wants it."""

    def __init__(self, built: Loaded) -> None:
        super().__init__()
        self.built, self.model = built, built.model

    def forward(self, arrays: Arrays) -> torch.Tensor:
        return forward(self.built, arrays)


def test_flops_are_those_that_torch_counts(built: Loaded, rows: list[Example]) -> None:
    """torch counts the whole square of attention where it is masked, too; of what it counts,
    rotary embeddings alone are left out here. Its count knows no fused attention on a CPU."""
    arrays, _ = built.encoder([rows[3]])  # no padding
    before = built.model.config._attn_implementation
    built.model.set_attn_implementation("eager")
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            Whole(built)(arrays)
    finally:
        built.model.set_attn_implementation(before)
    counted = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    text = built.model.config.text_config
    above_diagonal = scores(arrays["input_ids"].shape[1] ** 2 / 2, text.hidden_size)
    flops = built.family.flops(built.model.config, arrays)
    assert flops.vision == counted["Whole.model.model.vision_tower"]
    assert flops.projector == counted["Whole.model.model.multi_modal_projector"]
    assert flops.language + text.num_hidden_layers * above_diagonal == pytest.approx(
        counted["Whole.model.model.language_model"] + counted["Whole.model.lm_head"], rel=0.01
    )
    assert flops.total == pytest.approx(counted["Global"], rel=0.1)


def test_flops_of_a_batch_are_those_of_its_rows_padded_or_packed(
    built: Loaded, rows: list[Example]
) -> None:
    config, flops = built.model.config, built.family.flops
    alone = [flops(config, built.encoder([row])[0]) for row in rows]
    encoded = [built.encoder.encode(row) for row in rows]
    for batch in (built.encoder.collate(encoded), built.encoder.collate_packed(encoded, 300)):
        together = flops(config, batch)
        assert together.language == sum(row.language for row in alone)
        # the blank image that the text has alone is not run where there are others
        assert together.vision == sum(row.vision for row in alone) - alone[1].vision


def test_a_template_that_loses_an_image_is_refused(built: Loaded, rows: list[Example]) -> None:
    encoder = type(built.encoder)(built.encoder.path)
    template = encoder.processor.chat_template
    encoder.processor.chat_template = template.replace("<|image|>", "")
    with pytest.raises(ValueError, match="A row has 0 image tokens, and its images take"):
        encoder([rows[0]])


def test_the_begin_token_is_added_where_the_template_leaves_it_to_the_tokenizer(
    built: Loaded, rows: list[Example]
) -> None:
    encoder = type(built.encoder)(built.encoder.path)
    tokenizer, processor = encoder.tokenizer, encoder.processor
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.bos_token_id)]
    )
    usual = encoder.encode(rows[0]).input_ids
    processor.chat_template = processor.chat_template.replace("{{ bos_token }}", "")
    assert encoder.encode(rows[0]).input_ids == usual
    assert usual.count(tokenizer.bos_token_id) == 1
