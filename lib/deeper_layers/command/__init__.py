"""The command `deeper-layers`: plan, distances, sweep, scan, prune, heal, results, report.

In: what was typed. Out: a table on stdout, or JSON; progress on stderr; an exit status. Options are the fields of the
parameter classes of `experiments`, so what is typed here and what a notebook takes are one thing. torch and lm-eval are
imported when there is something to measure.
Read first: group.py (the list, what becomes of a mistake), measure.py (typical subcommands), options.py (fields as
options, how an answer is printed, the one cut of prune and heal).
"""

from deeper_layers.command.group import main as main
