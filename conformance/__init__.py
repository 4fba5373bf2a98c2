"""Pruned folders opened in every engine that people run: are its greedy tokens those of transformers?

In: tiny random models of every family, saved as the oldest transformers that we name saves them. Out: measured.json,
what each engine made of each cut of each family, which the book shows. environments.py makes each engine's own
environment, checkpoints.py the folders and what is expected of them, verdicts.py compares. Read first: __main__.py.
"""
