"""Jobs: what can be measured of a model, as data; how each is found or measured; and what it costs.

In: options, which are checked. Out: results, and `.scores()` and `.distances()`, frames of all of them. Heavy libraries
are imported only to measure.
Read first: options.py and notebook_options.py (what can be asked), job.py (a job and its key), listing.py (the jobs of
each notebook), session.py (a result is found, or measured and written), subject.py (the model, opened), measure.py
(how). ask_until.py asks items until an answer is precise enough, and looks.py says whether it is. select_cuts.py
chooses the cuts, price.py and plan.py tell the cost, take_away.py and pruned_checkpoint.py write files, and check.py
tries all of it on this machine (trials.py).
"""
