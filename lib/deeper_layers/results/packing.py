"""What came out of measured items as text for JSON, zlib, then base 64: small whole numbers, and numbers of 16 bits."""

import base64
import functools
import zlib

import numpy as np

LEVEL = 9  # of zlib: files of results are to be small
MOST = 2**27  # bytes that a text of log-probabilities unpacks to
LOGPROBS = "logprobs"  # among outcomes: of every choice, in 16 bits
WRITTEN = "written"  # tokens of each answer, in 16 bits too: exact up to 2,048


def pack(values: np.ndarray) -> str:
    """Numbers from 0 to 255 as text. Raises ValueError for any others."""
    values = np.asarray(values)
    if values.size and not (values.min() >= 0 and values.max() <= 255):
        raise ValueError(f"outcomes must lie in 0..255, got {values.min()}..{values.max()}")
    return base64.b64encode(zlib.compress(values.astype(np.uint8).tobytes(), LEVEL)).decode()


@functools.lru_cache(maxsize=4096)  # the right choices are the same in many files
def unpack(text: str, items: int) -> np.ndarray:
    """The inverse of `pack`: [I] unsigned bytes. Raises ValueError where the text does not hold so many `items`."""
    found = np.frombuffer(_opened(text, items), dtype=np.uint8)
    if found.size != items:
        raise ValueError(f"outcomes are of {found.size} items, expected {items}")
    return found


def pack_halves(values: np.ndarray) -> str:
    """Numbers [I, K] as text, 16 bits each: one is kept within 0.05% of itself, what is missing as nan.

    Log-probabilities of choices, distances of blocks: I items or sequences, K of them each.
    """
    halves = np.clip(np.asarray(values, dtype=float), np.finfo("<f2").min, None).astype("<f2")
    # the high bytes of neighbours are alike: together they take less room
    planes = halves.reshape(-1).view(np.uint8).reshape(-1, 2).T
    return base64.b64encode(zlib.compress(planes.tobytes(), LEVEL)).decode()


def unpack_halves(text: str, items: int) -> np.ndarray:
    """The inverse of `pack_halves` for so many items: [I, K] in float64. Raises ValueError for what is no such text."""
    planes = np.frombuffer(_opened(text, MOST), dtype=np.uint8).reshape(2, -1)
    return planes.T.copy().view("<f2").reshape(items, -1).astype(float)


def _unpack_lengths(text: str, items: int) -> np.ndarray:
    return unpack_halves(text, items)[:, 0]


ITEM_BY_ITEM = {"chosen": unpack, LOGPROBS: unpack_halves, WRITTEN: _unpack_lengths, "ended": unpack}


def _opened(text: str, most: int) -> bytes:
    """At most one byte more than `most`, whatever the text would unpack to."""
    try:
        return zlib.decompressobj().decompress(base64.b64decode(text, validate=True), most + 1)
    except zlib.error as error:
        raise ValueError(f"outcomes can't be unpacked ({error})") from None
