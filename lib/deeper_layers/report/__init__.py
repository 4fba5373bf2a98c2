"""From results to statistics, figures and verdicts. No torch.

In: measured units. Out: tables, figures, each claim of the paper with a verdict. Four rooms, from the ground up:
statistics/ (rows as curves and items, with intervals), figures/ (what is drawn), claims/ (what the paper says, and how
it is judged), questions/ (what else units answer). Read first: paper.py (the paper's numbers), thresholds.py (ours),
names.py (what others named, as text). standards.py and provenance.py say where numbers come from.
"""
