"""From the table of all results to estimates, figures, claims and pages. No torch.

In: frames of `results.scores()` and `results.distances()`. Out: tidy frames with intervals (statistics.py, computed by
estimates.py), figures that show themselves (figures.py, with what they share in panels.py, drawn twice by drawing.py,
with what they show in words by findings.py), and the paper's claims with their
verdicts (claims.toml and claims.py; the paper's numbers in paper.toml). Read first: estimates.py, statistics.py.
measured.py lists what was run, one_cut.py reports on one cut, names.py writes names and numbers.
"""
