"""From results to curves, statistics, verdicts and figures. No torch.

In: measured units. Out: tables, figures, each claim of the paper with a verdict. Read first: curves.py (rows as
curves with intervals), figures.py (what is drawn), claims.py (the list of claims), decisions.py and
healing_decisions.py (how each is decided, by thresholds.py) and verdicts.py (what a verdict is). significance.py has
the tests, paper.py the paper's numbers.
"""
