"""What a notebook asks for: its parameters, and the frames that it is made of.

In: parameters, checked. Out: `.scores()` and `.distances()`, frames of results; what results lack of the one model that
is asked for is measured and written before. Nothing heavy is imported where nothing is measured.
Read first: parameters.py, notebook_parameters.py (a class a notebook, and what it measures), experiment.py (a model
under its parameters: a measurement is a kind, settings, data and a function), and what measures: distances, scoring
(tasks and texts), choosing (cuts and rules), healings, take_away. plans.py prices what results lack.
"""
