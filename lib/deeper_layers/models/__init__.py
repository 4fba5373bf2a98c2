"""Open a model, find its layers, and say what its configuration holds of each.

In: "embedded", a hub id, a folder or a `.gguf` file. Out: a Source (name, fingerprint, depth, known without opening
it), then the model and its tokenizer. Read first: sources.py (which model), opening.py (open it), decoder.py (its
layers). checkpoint_files.py and gguf_reading.py check the files of strangers, configuration.py whether they are what it
needs; sizes.py says how large it is, and half_precision.py has products of 16 bits.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
