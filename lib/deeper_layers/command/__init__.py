"""The command `deeper-layers`: plan, distances, sweep, scan, prune, heal, results, report.

In: what was typed. Out: a table on stdout, or JSON; progress on stderr; an exit status. Options are the fields of the
parameter classes of `experiments`, so what is typed here and what a notebook takes are one thing. A subcommand is
imported when it is asked for, and imports torch and lm-eval when there is something to measure.
Read first: group.py (the list, what becomes of a mistake), sweep.py (a typical subcommand), options.py (fields as
options). cutting.py chooses the one cut of prune and heal, answers.py prints.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
