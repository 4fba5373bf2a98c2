"""Our own questions, one file and one notebook each. No torch.

In: the table of all results. Out: tidy frames with intervals, drawn by report/figures.py.
Read first: letters_or_words.py (what letters can't see), then which_layers.py (rules, maps of all blocks, geometry).
"""
