"""What a notebook asks for: its parameters, and the measured units that it is made of.

In: parameters, checked. Out: units, read from results where they hold them, else measured and written. Nothing heavy
is imported where nothing is measured. Read first: measurement.py (one class for a measured unit), parameters.py; then
choosing.py (the cut of a rule), and the unit of each experiment: distances, geometry, sweeps, scans, losses, choices,
healings, shots, bits, take_away.
"""
