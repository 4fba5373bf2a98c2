"""The parameters of notebooks and commands, and the measurements that they start.

In: parameters, which are checked. Out: `.scores()` and `.distances()`, frames of results. If the parameters name one
model, results that are missing are measured and written before. Heavy libraries are imported only to measure.
Read first: parameters.py, notebook_parameters.py (a class for each notebook, with what it measures), experiment.py (a
measurement is a kind, settings, data and a function). Then the measurements: distances, scoring (tasks and texts),
choosing (cuts and rules), healings, take_away. plans.py estimates the cost of missing results.
"""
