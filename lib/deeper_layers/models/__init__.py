"""Open a model, find its layers, and read what its configuration says about each.

In: "embedded", a hub id, a folder or a `.gguf` file. Out: a Source (name, fingerprint and depth, known without opening
the model), then the model and its tokenizer. Read first: sources.py (which model), origins.py (the four places where it
may be), opening.py (open it), decoder.py (its layers). checkpoint_files.py and gguf_reading.py check files that
strangers wrote, configuration.py checks that a checkpoint fits its configuration. sizes.py counts parameters,
half_precision.py multiplies 16-bit matrices.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
