"""The same cuts on disk: files of a model without some of its layers, adapters merged, a model card.

In: a folder, hub id or GGUF file, and a cut. Out: a folder that plain transformers opens, or a GGUF file for
llama.cpp. Weights are copied as bytes. Read first: slicing.py (safetensors), gguf_files.py (GGUF).
tensors.py says which tensors are which layer's and what is done to them, config_text.py what becomes of config.json,
adapter_files.py what adapters add, lineage.py what was done and whether a folder is as it was written.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
