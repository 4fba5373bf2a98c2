"""lm-eval's tasks, and loss on text, through a family of pruned models.

In: a model, tasks or sequences, cuts. Out: a table with one row for each task, metric and cut, the answers item by
item. lm-eval owns prompts and metrics (harness.py). Read first: sweeps.py; losses.py has the loss on text.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
