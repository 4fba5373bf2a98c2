"""Prune, measure and heal open-weight language models: the library behind the book.

The public names below are loaded when they are asked for, so that importing the package costs nothing. Rooms, from
the ground up: errors, checks, markup, files, cuts, package_index, presets, results, data, models, pruning,
similarity, rules, sweeping, report, export, healing, prices, experiments, studies, command.
Each imports only those before it.
Read first: cuts.py (what is dropped), similarity.py (which layers are alike), pruning.py (dropping them).
"""

import logging

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# at its import bitsandbytes reports the lack of an optional package, whoever imports it and for whatever
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
