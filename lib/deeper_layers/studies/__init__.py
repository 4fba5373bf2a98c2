"""Our own studies, beyond the paper. No torch.

In: the table of all results. Out: tidy frames with intervals, which report/figures.py draws.
Read first: letters_or_words.py (letters against words), then which_layers.py (rules, maps of all blocks, geometry).
"""
