"""Which layers to drop: the paper's similarity-informed rule and its simple heuristic.

In: block sizes, the model's depth, distances where a rule needs them. Out: one cut for each size. Needs no torch.
Read first: choosing.py; a new rule is a line of its RULES and a function from size to cut, as similarity.py has it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
