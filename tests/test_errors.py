"""What messages are made of: numbers of bytes in words, and values that are too long to be shown whole."""

import pytest

from deeper_layers.checks import short_repr
from deeper_layers.errors import format_bytes, is_out_of_memory

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0.00 MB"),
        (1_234_567, "1.23 MB"),
        (10**9 - 10**7, "990.00 MB"),
        (10**9, "1.00 GB"),
        (2_718_000_000, "2.72 GB"),
    ],
)
def test_bytes_in_words(number, words):
    assert format_bytes(number) == words


def test_a_long_value_is_shown_by_its_ends():
    fits, longer = "x" * 198, "x" * 199  # with quotation marks 200 and 201 characters
    assert short_repr(fits) == repr(fits)
    assert short_repr(longer) == f"'{'x' * 149} ... {'x' * 39}'"
    assert short_repr(10**5000) == "a int"


def test_memory_that_ran_out_is_known_by_a_class_or_by_words():
    of_torch = type("OutOfMemoryError", (RuntimeError,), {})()
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(of_torch)
    assert is_out_of_memory(RuntimeError("CUDA out of memory")) and not is_out_of_memory(RuntimeError("no such file"))
