"""Our own studies, beyond the paper. No torch.

In: the table of all results. Out: tidy frames with intervals, which report/figures.py draws. What was registered before
its data stands in registered/, word for word (criteria.py); what was seen after the data is in seen_after.py.
Read first: letters_or_words.py (letters against words), then which_layers.py (rules, maps of all blocks, geometry).
"""
