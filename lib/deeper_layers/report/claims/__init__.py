"""Each claim of the paper, decided by what was measured.

In: what is held of each model, and the thresholds. Out: rulings: a verdict, what it rests on, how surely.
Read first: claims.py (the list of claims), decisions.py and healing_decisions.py (how each is decided), verdicts.py
(what a verdict is). deciding.py has what decisions share, history.py what changed and why, said_before.py what pages
said that have no verdict, half_gone.py what leads the book.
"""
