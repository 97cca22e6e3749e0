"""Images in a request: bytes that decode, within the operator's limits."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import warnings
from collections.abc import Sequence

from PIL import Image, ImageOps

from serve.remote_images import Fetcher

# Formats that Pillow decodes by itself, without helper programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Models fit the shorter side to hundreds of pixels, and the longer one grows along.
LONGEST_TO_SHORTEST = 100


async def read_images(
    urls: Sequence[str], max_pixels: int, fetcher: Fetcher | None
) -> tuple[bytes, ...]:
    """The encoded images at `data:` URLs and, with a `fetcher`, at other addresses.

    Raises ValueError with one sentence for the first that cannot be had, or that is not an image
    in one of FORMATS, is damaged, animated, very long or larger than `max_pixels` pixels.
    """

    async def one(url: str) -> bytes:
        if url[:5].lower() == "data:":
            return await asyncio.to_thread(lambda: _checked(read_data_url(url), max_pixels))
        if fetcher is None:
            raise ValueError("An image must be a data: URL; this server fetches nothing.")
        fetched = await fetcher.fetch(url)
        return await asyncio.to_thread(_checked, fetched, max_pixels)

    # One after another: a request has few, and its memory is bounded by the largest.
    return tuple([await one(url) for url in urls])


def read_data_url(url: str) -> bytes:
    """The bytes in a `data:` URL. Raises ValueError with one sentence if it is not base64."""
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ValueError("An image must be a data: URL in base64.")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("The image is not valid base64.") from None


def _checked(encoded: bytes, max_pixels: int) -> bytes:
    """The same bytes. Nothing is decoded before the header's size is known to be allowed."""
    too_many = f"The image has more than the {max_pixels} pixels that this server allows."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        animated = getattr(image, "is_animated", False)
        sides = sorted(image.size)
        fits = sides[0] * sides[1] <= max_pixels and sides[1] <= LONGEST_TO_SHORTEST * sides[0]
        if fits and not animated:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # as the models' encoders will
    except Image.DecompressionBombError:
        raise ValueError(too_many) from None
    except Exception:  # a damaged file makes Pillow's decoders raise errors of many kinds
        kinds = ", ".join(FORMATS)
        raise ValueError(f"The image cannot be decoded; it must be one of {kinds}.") from None
    if sides[0] * sides[1] > max_pixels:
        raise ValueError(too_many)
    if not fits:
        raise ValueError(
            f"An image's longer side may be {LONGEST_TO_SHORTEST} times the shorter one; "
            f"this one has {image.width} x {image.height} pixels."
        )
    if animated:
        raise ValueError("The image is animated; send one frame of it.")
    return encoded
