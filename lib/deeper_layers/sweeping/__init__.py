"""All pruned models of one network as a tree of layers, scored through lm-eval.

In: a model, cuts, tasks or sequences. Out: a table with one row for each task, metric and cut, and the answers item by
item. What pruned models share runs once, and each layer serves all of them together. Read first: tree.py, which draws
the tree, then forward.py, which takes one batch through it, and tree_model.py. sweeps.py gives it lm-eval's requests.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
