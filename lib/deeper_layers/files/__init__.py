"""Files that are absent or complete: written whole, made beside their place, never in the place of another.

In: a path and what it is to hold. Out: the file, or an InputError that names the place; leftovers of dead processes go.
Read first: whole.py (one file at once), then staging.py (files and folders that take long to make).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
