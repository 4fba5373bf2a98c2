"""Which layers to drop: the paper's similarity-informed rule and its simple heuristic, and rivals of these.

In: sizes, the model's depth, and what a rule needs to know. Out: one cut for each size. Needs no torch.
With torch: what some rules change of the layers that stay (changing.py), and what layers look like (geometry.py).
Read first: choosing.py, the table of all rules, and what they do.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
