"""What is faster than what, and pruned models in every engine: each comparison one file, timed by one harness.

In: another way to do the same (lm-eval, mergekit, a bare pass, an earlier checkout). Out: measured/NAME.json with the
command and the commit that made it, which the book shows. Files without a program were measured once: it is at their
commit. `python -m benchmarks` lists all; engines/ opens pruned folders in other engines. Read first: harness.py.
"""
