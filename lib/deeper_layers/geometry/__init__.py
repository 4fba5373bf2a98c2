"""What the residuals of a model look like, layer by layer, and what each layer adds to them.

In: a model and the batches that angular distances are measured on. Out: arrays of each batch, and of all batches the
measures of layers, of the states between them and of pairs of states. Read first: measures.py (the formulas),
recording.py (one pass), skipping.py (each layer left out in turn), summary.py (all batches together).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
