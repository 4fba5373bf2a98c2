"""Rows in, figure out: nothing is computed here.

In: tables whose columns are checked. Out: figures, drawn twice, for print and for the site, with words for those who
can't see them. Read first: paper_figures.py (the paper's figures), drawing.py (one picture drawn twice), tables.py
(what is checked and told). The others draw what the paper has no figure of.
"""
