"""Images in a request: data URLs whose bytes decode, within the operator's limits."""

from __future__ import annotations

import base64
import binascii
import io
import warnings

from PIL import Image

# Formats that Pillow decodes by itself, without helper programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def read_data_url(url: str, max_pixels: int) -> bytes:
    """The encoded image in a `data:` URL, as it came.

    Raises ValueError with one sentence if it is another kind of URL, not base64, not an image
    in one of FORMATS, damaged, or larger than `max_pixels` pixels.
    """
    header, comma, payload = url.partition(",")
    if not header.startswith("data:"):
        raise ValueError("An image must be a data: URL; this server fetches nothing.")
    if not comma or not header.endswith(";base64"):
        raise ValueError("An image must be a data: URL in base64.")
    try:
        encoded = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("The image is not valid base64.") from None
    _check(encoded, max_pixels)
    return encoded


def _check(encoded: bytes, max_pixels: int) -> None:
    too_many = f"The image has more than the {max_pixels} pixels that this server allows."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        pixels = image.width * image.height
        if pixels <= max_pixels:
            image.load()
    except Image.DecompressionBombError:
        raise ValueError(too_many) from None
    except Exception:  # a damaged file makes Pillow's decoders raise errors of many kinds
        kinds = ", ".join(FORMATS)
        raise ValueError(f"The image cannot be decoded; it must be one of {kinds}.") from None
    if pixels > max_pixels:
        raise ValueError(too_many)
