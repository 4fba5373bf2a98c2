"""Small whole numbers, one a measured item, as text for JSON: zlib, then base 64."""

import base64
import zlib

import numpy as np


def pack(values: np.ndarray) -> str:
    """Numbers from 0 to 255 as text. Raises ValueError for any others."""
    values = np.asarray(values)
    if values.size and not (values.min() >= 0 and values.max() <= 255):
        raise ValueError(f"outcomes must lie in 0..255, got {values.min()}..{values.max()}")
    return base64.b64encode(zlib.compress(values.astype(np.uint8).tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """The inverse of `pack`: a vector of unsigned bytes, one an item."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)


def packed_length(text: str, most: int) -> int:
    """How many numbers a text holds, or `most` + 1 where they are more, which are not all unpacked.

    Raises ValueError for a text that `pack` did not make.
    """
    opened = zlib.decompressobj()
    try:
        found = len(opened.decompress(base64.b64decode(text, validate=True), most + 1))
    except zlib.error as error:
        raise ValueError(f"outcomes can't be unpacked ({error})") from None
    if found <= most and not opened.eof:
        raise ValueError("outcomes end too early")
    return found
