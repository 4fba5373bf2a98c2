"""Tiny random checkpoints, saved by the transformers of the Python that runs this: PYTHON write_sources.py JOBS ANSWERS

JOBS is a list of {name, folder, model_type, settings, vocabulary}; ANSWERS gets {name: null or the error}. Nothing of
this project is imported.
"""

import json
import sys
import traceback

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast


def main(jobs: str, answers: str) -> None:
    found = {}
    with open(jobs, encoding="utf-8") as file:
        wanted = json.load(file)
    for job in wanted:
        try:
            write(job)
            found[job["name"]] = None
        except Exception as error:  # a family that this version does not know, or not with these settings
            traceback.print_exc()
            found[job["name"]] = f"{type(error).__name__}: {error}"
    with open(answers, "w", encoding="utf-8") as file:
        json.dump(found, file)


def write(job: dict) -> None:
    config = AutoConfig.for_model(job["model_type"], **job["settings"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # gains of norms and biases, which start as constants
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(job["folder"])
    words = {f"t{number}": number for number in range(job["vocabulary"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.ByteLevel()
    named = {"unk_token": "t0", "pad_token": "t0", "bos_token": "t1", "eos_token": "t2"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(job["folder"])


if __name__ == "__main__":
    main(*sys.argv[1:])
