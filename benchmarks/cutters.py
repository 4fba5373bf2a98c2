"""Ways to drop layers that others use, each run by a Python that has it: PYTHON benchmarks/cutters.py WAY FOLDER

FOLDER/jobs.json lists what to cut: name, source (a checkpoint), out, start, size, layers (the module that holds
them, as in model.layers) and yaml (the cut as mergekit states it). FOLDER/WAY.json then holds the versions, and for
each name the first line of the error, or null, as soon as it is done. With SECONDS after FOLDER it ends where a job
takes longer. Nothing of this project is imported.
"""

import faulthandler
import importlib.metadata
import json
import logging
import sys
import warnings
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM


def mergekit(job: dict) -> None:
    """A passthrough merge, as mergekit-yaml runs it."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    configuration = MergeConfiguration.model_validate(yaml.safe_load(job["yaml"]))
    run_merge(configuration, job["out"], MergeOptions(copy_tokenizer=False))


def optipfair(job: dict) -> None:
    from optipfair.pruning.depth import prune_model_depth

    model = AutoModelForCausalLM.from_pretrained(job["source"])
    dropped = list(range(job["start"], job["start"] + job["size"]))
    prune_model_depth(model, layer_indices=dropped, show_progress=False).save_pretrained(job["out"])


def delete(job: dict) -> None:
    """Only `del model.model.layers[start:stop]`, told where a family keeps its layers."""
    _deleted(job).save_pretrained(job["out"])


def delete_and_count(job: dict) -> None:
    """The same, and the number of layers in the configuration lowered."""
    model = _deleted(job)
    model.config.num_hidden_layers -= job["size"]
    model.save_pretrained(job["out"])


def _deleted(job: dict):
    model = AutoModelForCausalLM.from_pretrained(job["source"])
    del model.get_submodule(job["layers"])[job["start"] : job["start"] + job["size"]]
    return model


WAYS = {"mergekit": mergekit, "optipfair": optipfair, "delete": delete, "delete_and_count": delete_and_count}


def main(way: str, folder: str, seconds: str | None = None) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    names = ("mergekit", "optipfair", "transformers", "torch")
    versions = {name: _version(name) for name in names if _version(name)}
    errors = {}
    for job in json.loads((Path(folder) / "jobs.json").read_text()):
        if seconds:
            faulthandler.dump_traceback_later(float(seconds), exit=True)
        try:
            WAYS[way](job)
            errors[job["name"]] = None
        except (Exception, SystemExit) as error:  # whatever a tool raises is its result
            errors[job["name"]] = f"{type(error).__name__}: {error}"
        content = {"versions": versions, "errors": errors}
        (Path(folder) / f"{way}.json").write_text(json.dumps(content))
    faulthandler.cancel_dump_traceback_later()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main(*sys.argv[1:])
