"""Pruned models of one network as a tree of layers, run together.

In: a model, cuts, tokens. Out: log-likelihoods or texts of every pruned model. What pruned models share is run once,
and each layer serves all of them together. Read first: tree.py, which draws it, then walk.py, which takes one batch
through it, and pruned_family.py. planning.py arranges requests and prices them, memory.py says what they take,
lending.py shares a prompt's beginning, scored_only.py spares the last layer, abilities.py finds out what works on a
model, decoding.py writes answers, which generation.py gives to lm-eval.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
