"""The method: which layers of a language model are alike, the model without some of them, its scores, its healing.

The public names below are loaded when they are asked for, so that importing the package costs nothing. Modules, from
the lowest up: errors, checks, markup, files, cuts, packing, package_index, presets, schema, data, models, pruning,
similarity, sweeping, export, healing. Each imports only those before it, and none imports deeper_layers_companion.
Read first: cuts.py (what is dropped), similarity.py (which layers are alike), pruning.py (dropping them).
"""

import logging

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# at its import bitsandbytes reports the lack of an optional package, whoever imports it and for whatever
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
