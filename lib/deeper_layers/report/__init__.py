"""From results to curves, statistics, verdicts and figures. No torch.

In: measured units. Out: tables, figures, each claim of the paper with a verdict. Read first: curves.py (rows as
curves with intervals), figures.py (what is drawn), claims.py (the list of claims) and decisions.py (how each is
decided); a verdict itself is verdicts.py. paper.py has the paper's numbers.
"""
