"""Which layers to drop: the paper's similarity-informed rule and its simple heuristic, and rivals of these.

In: sizes, the model's depth, and what a rule needs to know. Out: one cut for each size. Needs no torch.
With torch: what some rules change of the layers that stay (bridges.py, merging.py), and what layers look like
(geometry.py).
Read first: rule.py, which says what a rule is, and choosing.py, the table of all. Their functions are in similarity.py,
blocks.py, ranking.py, greedy.py and laco.py.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
