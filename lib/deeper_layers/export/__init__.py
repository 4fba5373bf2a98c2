"""The same cuts on disk: a model's files without some of its layers, with adapters merged and a model card.

In: a folder, hub id or GGUF file, and a cut. Out: a folder that plain transformers opens, or a GGUF file for
llama.cpp. Weights are copied as bytes. Read first: slicing.py (safetensors), gguf_files.py (GGUF).
tensors.py assigns tensors to layers and edits them, config_text.py cuts config.json, adapter_files.py reads adapters,
lineage.py records every cut.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
