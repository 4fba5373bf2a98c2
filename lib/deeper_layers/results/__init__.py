"""Measured units on disk, the only source of every figure. No torch.

In: rows, outcomes item by item, the key (all that determines the numbers) and the provenance. Out: the same, found
again by key, kind or model. A unit is one JSON file in `results/MODEL/`. Files are written under another name and
renamed, so what is there is complete; what is not as schema.py asks of its kind is named in a warning and left out.
Read first: units.py.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
