"""Outcomes of items packed as text for JSON, by zlib and base 64: small whole numbers, and numbers of 16 bits."""

import base64
import zlib

import numpy as np


def pack(values: np.ndarray) -> str:
    """Numbers from 0 to 255 as text. Raises ValueError for any others."""
    values = np.asarray(values)
    if values.size and not (values.min() >= 0 and values.max() <= 255):
        raise ValueError(f"outcomes must lie in 0..255, got {values.min()}..{values.max()}")
    return _encode(values.astype(np.uint8))


def unpack(text: str, items: int) -> np.ndarray:
    """The inverse of `pack`: [I] unsigned bytes."""
    return _decode(text).reshape(items)


def pack_halves(values: np.ndarray) -> str:
    """Numbers [I, K] of I items or sequences as text, 16 bits each: within 0.05%, nan where missing."""
    halves = np.clip(np.asarray(values, dtype=float), np.finfo("<f2").min, None).astype("<f2")
    # the high bytes of neighbours are alike, and compress better side by side
    return _encode(halves.reshape(-1).view(np.uint8).reshape(-1, 2).T)


def unpack_halves(text: str, items: int) -> np.ndarray:
    """The inverse of `pack_halves`: [I, K] in float64."""
    return _decode(text).reshape(2, -1).T.copy().view("<f2").reshape(items, -1).astype(float)


ITEM_BY_ITEM = {
    "chosen": unpack,
    "logprobs": unpack_halves,  # of every choice
    # tokens of each answer, exact up to 2,048
    "written": lambda text, items: unpack_halves(text, items)[:, 0],
    "ended": unpack,
    "compared": unpack_halves,  # agreement, overlap and kl of each sequence
}


def _encode(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), level=9)).decode()


def _decode(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
