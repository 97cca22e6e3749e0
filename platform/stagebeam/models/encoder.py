"""Text and images to arrays, on the CPU: what the encoders of all families share.

A family adds how an image becomes arrays, how many tokens it takes in the text, and how the images
of a batch are put together. Needs a model folder's processor, never its weights.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import ImageOps
from transformers import AutoProcessor

from stagebeam.local_copy import fetched
from stagebeam.models.spelling import Spelling
from stagebeam.records import IMAGE_FORMATS, Example, Message

IGNORE = -100  # label of a token without loss

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One conversation as ids and pixels, not yet padded."""

    input_ids: list[int]  # [T]
    labels: list[int]  # [T]
    images: tuple[Arrays, ...]  # one entry an image, see RowEncoder.image


def picture_of(data: bytes) -> PilImage.Image:
    """An encoded image in RGB, the right way up: turned as its EXIF data say.

    Raises ValueError where the bytes cannot be decoded, or are of none of IMAGE_FORMATS.
    """
    try:
        opened = PilImage.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        return ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # a damaged file makes Pillow raise errors of many kinds
        raise ValueError("An image cannot be decoded.") from error


Chat = list[dict[str, Any]]


def chat_of(messages: Sequence[Message], images: int, places: Sequence[int] = ()) -> Chat:
    """A conversation as chat templates take it; see `RowEncoder.render`."""
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    assert not images or users, "images need a user turn to stand in"
    assert not places or len(places) == images, "each image has its place"
    standing = Counter(places or users[:1] * images)
    return [
        {
            "role": message.role,
            "content": [{"type": "image"}] * standing[i] + [{"type": "text", "text": message.text}],
        }
        for i, message in enumerate(messages)
    ]


class RowEncoder(ABC):
    """Pickles as a path; the processor is loaded where it is used."""

    def __init__(self, path: str, max_length: int | None = None) -> None:
        self.path = path
        self.max_length = max_length  # tokens

    def __reduce__(self) -> tuple[type[Self], tuple[str, int | None]]:
        return type(self), (self.path, self.max_length)

    @abstractmethod
    def pixels(self, picture: PilImage.Image) -> Arrays:
        """Arrays of one RGB image, its pixels as uint8; scaling and normalising are left to the
        device."""

    @abstractmethod
    def stack_images(self, rows: Sequence[Sequence[Arrays]]) -> Arrays:
        """The image arrays of a batch, given each row's images. Without any image in the batch
        they still hold a blank one: every rank must run the vision tower (DeepSpeed issue 7170).
        """

    def expand(self, text: str, images: Iterator[Arrays]) -> str:
        """The text with as many image tokens for each placeholder as its image takes; one where a
        family does not say otherwise."""
        return text

    def row_arrays(self, rows: Sequence[EncodedRow], input_ids: NDArray[Any]) -> Arrays:
        """More arrays that say something of each token of a padded batch, [B, T, ...]."""
        return {}

    @cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(fetched(self.path), trust_remote_code=False)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def image_processor(self) -> Any:
        return self.processor.image_processor

    @property
    def image_token(self) -> str:
        return str(self.processor.image_token)

    @cached_property
    def spelling(self) -> Spelling:
        """The chat template's markers, and how text that carries them is tokenised."""
        return Spelling(self.tokenizer, self.image_token)

    def render(
        self,
        messages: Sequence[Message],
        images: int,
        *,
        answer_next: bool,
        places: Sequence[int] = (),
    ) -> str:
        """The conversation through the model's own chat template. Images stand before the text of
        the first user turn, or of the turns that `places` names, one for each image.

        Raises ValueError where a message carries one of the template's own markers, and where the
        template refuses the conversation.
        """
        marker = self.spelling.find(message.text for message in messages)
        if marker is not None:
            raise ValueError(f"A message contains {marker}, a marker of the chat template.")
        return self.template(chat_of(messages, images, places), answer_next=answer_next)

    def template(self, chat: Chat, *, answer_next: bool) -> str:
        """The text that the template makes of a conversation.

        Raises ValueError where it refuses it, as some do a system's turn beside an image.
        """
        try:
            return str(
                self.processor.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=answer_next
                )
            )
        except TemplateError as error:
            said = f"The model's chat template refuses the conversation: {error}"
            raise ValueError(f"{said.rstrip('.')}.") from None

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text; the template has written the special tokens already."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text_ids(self, text: str) -> list[int]:
        """Token ids of text that somebody wrote: a chat marker in it is words. The same as `ids`
        where it has none."""
        masked = self.spelling.mask([text])
        return self.spelling.ids(masked.texts[0], masked.sign, self.ids)

    def prompt_ids(
        self, messages: Sequence[Message], images: Sequence[Arrays], places: Sequence[int] = ()
    ) -> list[int]:
        """Ids up to where the assistant's answer begins; `images` as `image` makes them, `places`
        as for `render`. Chat markers in a message are words.

        Raises ValueError where the template refuses the conversation.
        """
        return self._prompt(
            messages, len(images), places, lambda text: self.expand(text, iter(images))
        )

    def unexpanded_prompt_ids(
        self, messages: Sequence[Message], images: int, places: Sequence[int] = ()
    ) -> list[int]:
        """The same with one token for each image, however many it takes."""
        return self._prompt(messages, images, places, lambda text: text)

    def _prompt(
        self,
        messages: Sequence[Message],
        images: int,
        places: Sequence[int],
        expand: Callable[[str], str],
    ) -> list[int]:
        masked = self.spelling.mask([message.text for message in messages])
        shown = [
            Message(message.role, text)
            for message, text in zip(messages, masked.texts, strict=True)
        ]
        text = expand(self.template(chat_of(shown, images, places), answer_next=True))
        return self.spelling.ids(text, masked.sign, self.ids)

    def prompt_text(
        self, messages: Sequence[Message], images: Sequence[Arrays], places: Sequence[int] = ()
    ) -> str:
        """What `prompt_ids` are the ids of, where no message carries a chat marker."""
        rendered = self.render(messages, len(images), answer_next=True, places=places)
        return self.expand(rendered, iter(images))

    def encode(self, example: Example) -> EncodedRow:
        """A training row: loss on every assistant turn, its end token included, nowhere else.

        Raises ValueError for a row that is too long, has chat markers in its text or a broken
        image.
        """
        input_ids: list[int] = []
        labels: list[int] = []
        done = ""
        count = len(example.images)
        images = tuple(self.image(image.bytes) for image in example.images)
        unplaced = iter(images)
        for turn, message in enumerate(example.messages):
            if message.role != "assistant":
                continue
            asked = self.render(example.messages[:turn], count, answer_next=True)
            answered = self.render(example.messages[: turn + 1], count, answer_next=False)
            assert asked.startswith(done) and answered.startswith(asked), "template is not causal"
            prompt = self.ids(self.expand(asked[len(done) :], unplaced))
            answer = self.ids(answered[len(asked) :])
            if self.tokenizer.eos_token_id not in answer:  # LLaVA-1.5's template writes no end
                answer.append(self.tokenizer.eos_token_id)
            input_ids += prompt + answer
            labels += [IGNORE] * len(prompt) + answer
            done = answered
        if self.max_length and len(input_ids) > self.max_length:
            raise ValueError(
                f"Row {example.id} has {len(input_ids)} tokens, more than {self.max_length}."
            )
        return EncodedRow(input_ids, labels, images)

    def image(self, data: bytes) -> Arrays:
        """One image as `pixels` gives it.

        Raises ValueError where the bytes are no image that can be decoded.
        """
        return self.pixels(picture_of(data))

    def collate(self, rows: Sequence[EncodedRow], *, left: bool = False) -> Arrays:
        """Pad rows into one batch of arrays, images included: `input_ids`, `labels` and
        `attention_mask` [B, T], and the family's own. On the right, or on the left for decoding.
        """
        width = max(len(row.input_ids) for row in rows)

        def padded(values: list[int], fill: int) -> list[int]:
            padding = [fill] * (width - len(values))
            return padding + values if left else values + padding

        pad = self.tokenizer.pad_token_id
        input_ids = np.array([padded(r.input_ids, pad) for r in rows], np.int64)
        return {
            "input_ids": input_ids,
            "labels": np.array([padded(r.labels, IGNORE) for r in rows], np.int64),
            "attention_mask": np.array([padded([1] * len(r.input_ids), 0) for r in rows], np.int64),
            **self.row_arrays(rows, input_ids),
            **self.stack_images([r.images for r in rows]),
        }

    def collate_packed(self, rows: Sequence[EncodedRow], width: int) -> Arrays:
        """Rows one after another in sequences of at most `width` tokens that do not see each
        other; only of families that pack (Family.packs)."""
        raise AssertionError(f"{type(self).__name__} does not pack")

    def training_rows(self, examples: Sequence[Example]) -> tuple[list[EncodedRow], dict[str, str]]:
        """A row for each example, and why those ids were refused that cannot be trained on.

        A refused example leaves a row without loss in its place, so that every batch has its
        rows and one bad example does not end a run. No examples are such a row too: a rank that
        has none computes in step with the others.
        """
        rows, refused = [], {}
        nothing = EncodedRow([self.tokenizer.pad_token_id], [IGNORE], ())
        for example in examples:
            try:
                rows.append(self.encode(example))
            except ValueError as error:
                rows.append(nothing)
                refused[example.id] = str(error)
        return rows or [nothing], refused

    def __call__(self, examples: Sequence[Example]) -> tuple[Arrays, dict[str, str]]:
        """A training batch straight from examples (what the stream is handed), and what was
        refused."""
        rows, refused = self.training_rows(examples)
        return self.collate(rows), refused

    @cached_property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels scaled to 0..1."""
        return list(self.image_processor.image_mean), list(self.image_processor.image_std)
