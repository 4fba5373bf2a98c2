"""From the table of all results to estimates, figures, claims and pages. No torch.

In: frames of `results.scores()` and `results.distances()`. Out: tidy frames with intervals (statistics.py, of what
estimates.py computes), figures that show themselves (figures.py, each drawn twice by drawing.py), the paper's claims
with their verdicts (claims.toml and claims.py, its own numbers in paper.toml). Read first: estimates.py, statistics.py.
measured.py tells what was run, one_cut.py what results hold of one cut, names.py writes names and numbers.
"""
