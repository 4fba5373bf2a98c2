"""The command `deeper-layers`: check, plan, tasks, distances, sweep, scan, prune, heal, results, report.

In: the command line. Out: a table on stdout, or JSON; progress on stderr; an exit status. Options are the fields of the
parameter classes of `jobs`, so a command and a notebook take the same parameters. torch and lm-eval are imported
only when there is something to measure.
Read first: group.py (the list of subcommands, the handling of errors), measure.py (typical subcommands), options.py
(fields as options, how an answer is printed, the options for one cut).
"""

from deeper_layers_companion.command.group import main as main
