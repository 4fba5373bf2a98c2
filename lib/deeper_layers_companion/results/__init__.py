"""Results on disk, where every measured number is from, and the tables that are made from all of them. No torch.

In: rows, outcomes item by item, the key (all that determines the numbers) and the provenance. Out: the same, found
by key or model, and data frames of all results: `scores`, `distances`, `healing`, `geometry`, `runs`, `answers`.
A result is one JSON file of one of four kinds in `results/MODEL/`. It is written under another name and renamed, so
every file is complete. A damaged file is left out, and a warning names it.
Read first: schema.py (the kinds), store.py (files), frames.py (tables).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
