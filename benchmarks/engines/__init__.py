"""Pruned folders opened in every engine that people run: are its greedy tokens those of transformers?

In: tiny random models of every family, saved by the oldest transformers that we name, as most on the hub are. Out:
measured/engines.json, what each engine made of each cut of each family. environments.py makes each engine's own
environment, answering.py runs in it, checkpoints.py has the folders and judges. Read first: __main__.py.
"""
