"""What units answer besides the paper's claims.

In: units, and what is held of a model. Out: answers, each by a criterion that stands in its file.
Read first: dissociation.py (are letters lost in the middle and words late?), early_cliff.py (which of both falls
first in MMLU?), regret.py and rivals.py (how good is a rule's choice?), by_model.py (and for the next model?),
geometry.py (does geometry predict what dropping costs?), one_cut.py (what does this cut ruin?), two_ways.py (which
healing is better?), given_back.py (what does it give back?). scan_rows.py has scans as rows.
"""
