"""Which layers to drop: the paper's similarity-informed rule and its simple heuristic, and their rivals.

In: sizes, the model's depth, and the measurement that a rule needs. Out: one cut for each size. Needs no torch.
With torch: how some rules change the layers that stay (changing.py), and the geometry of residuals (geometry.py).
Read first: table.py, the table of all rules, then choosing.py, the ways to choose.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
