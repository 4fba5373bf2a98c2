"""Healing: a short fine-tune of low-rank adapters on a pruned model (QLoRA), on text or taught by the whole model.

In: a pruned model, its tokenizer, texts, settings. Out: the model with adapters, or merged into a plain model. peft and
transformers' Trainer do the work; `deeper_layers.presets` has the settings. Read first: training.py.
distillation.py has the teacher and its loss; adapters.py adds, saves, loads and merges adapters.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
