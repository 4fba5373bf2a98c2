"""What the book, its notebooks and the command need beside the method, which is the package deeper_layers.

Modules, from the lowest up: results, rules, report, prices, experiments, studies, command. Each imports only those before
it, and deeper_layers, which imports nothing from here.
Read first: results/frames.py (the one table of all results), experiments/parameters.py (what can be asked).
"""
