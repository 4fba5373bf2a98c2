"""Pruned models whose remaining layers are changed to make up for those that go: merged layers, bridges over a cut.

In: a model, what goes, sequences of tokens. Out: a model of the same class that computes in plain transformers and can
be saved by it. Nothing is added to the architecture: what can't be folded into a layer exactly is refused.
Read first: changing.py (what a rule leaves), fitting.py (linear maps and a trained layer), merging.py (layers that take
over what others differ by).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
