"""Prune, measure and heal open-weight language models: the library behind the book."""

import logging

# at its import bitsandbytes reports the lack of an optional package, whoever imports it and for whatever
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
