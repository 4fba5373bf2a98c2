"""Pruned models of one network, run together.

In: a model, cuts, tokens. Out: log-likelihoods or texts of every pruned model. The whole model runs once, each pruned
one only above its cut. Read first: pruned_family.py. planning.py arranges requests and prices them, network.py runs
one model from a residual, prefix_cache.py shares a prompt's beginning, generation.py writes answers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
