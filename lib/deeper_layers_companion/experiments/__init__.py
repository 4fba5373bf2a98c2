"""A plug-in of papermill, which prints a mistake in a parameter of a notebook in one line.

In: an error of a notebook that papermill runs. Out: its message, or all of it where it is a fault. What notebooks
measure is in jobs.
Read first: papermill_engine.py.
"""
