"""Who cuts which family right: a tiny random model of each, cut by ours and by others, reloaded and compared.

The reference is the same model in which the dropped layers hand on what they receive, in float32. A result is
*right* where the reloaded checkpoint has its logits and its greedy text, generated with a cache; *silently wrong*
where it loads without an error and has not; it *fails* where cutting or loading raises one; and ours *refuses*
what no configuration of the family can state. Of several cuts the worst counts, and how many came out like it.

    python -m benchmarks.families --mergekit PYTHON --optipfair PYTHON
"""

import argparse
import contextlib
import functools
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks import cutters, side_by_side
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.pruning import drop_layers
from tests.plain import generate, logits, without
from tests.tiny import ALL_FAMILIES, VOCABULARY, tiny_model

LAYERS = 6
CUTS = (Cut(0, 2), Cut(2, 1), Cut(1, 3))
WORST = ("silently wrong", "fails", "refused", "right")
CLOSE = 1e-4  # logits of a right model may differ so much from the reference, where its sums are in another order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", required=True, help="a Python that has mergekit")
    parser.add_argument("--optipfair", required=True, help="a Python that has optipfair")
    parser.add_argument("--families", default=",".join(ALL_FAMILIES), help="some of them, with commas")
    options = parser.parse_args()
    torch.set_num_threads(1)  # tiny models gain nothing from more
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    pythons = {"mergekit": options.mergekit, "optipfair": options.optipfair}
    names = options.families.split(",")
    with tempfile.TemporaryDirectory() as folder:
        jobs = prepare(names, Path(folder))
        versions, found = {}, {name: {"class": type(tiny_model(name)).__name__} for name in names}
        for way in ("ours", *cutters.WAYS):
            versions[way], errors = cut_all(way, pythons.get(way, sys.executable), jobs, Path(folder))
            for name in names:
                of_name = [job for job in jobs if job["family"] == name]
                found[name][way] = worst([judge(job, errors[job["name"]], folder) for job in of_name])
                print(name, way, found[name][way], flush=True)
    cuts = [[cut.start, cut.size] for cut in CUTS]
    side_by_side.keep("families", {"layers": LAYERS, "cuts": cuts, "versions": versions, "families": found})


def prepare(names: list[str], folder: Path) -> list[dict]:
    """A checkpoint of each family, and a job for each cut of it."""
    jobs = []
    for name in names:
        model, source = tiny_model(name, layers=LAYERS), folder / name
        model.save_pretrained(source)
        path = next(path for path, module in model.named_modules() if module is decoder_layers(model))
        for cut in CUTS:
            jobs.append({
                "family": name, "name": f"{name}-{cut.start}-{cut.size}", "source": str(source),
                "out": "", "layers": path, "start": cut.start, "size": cut.size,
                "yaml": cut.mergekit_yaml(LAYERS, str(source)),
            })  # fmt: skip
    return jobs


def cut_all(way: str, python: str, jobs: list[dict], folder: Path) -> tuple[dict, dict]:
    """Every job done one way: versions used, and the error of each, or none."""
    for job in jobs:
        job["out"] = str(folder / way / job["name"])
    if way == "ours":
        errors = {}
        for job in jobs:
            with contextlib.redirect_stderr(io.StringIO()):
                errors[job["name"]] = ours(job)
        packages = side_by_side.provenance(side_by_side.device_name())["packages"]
        return {name: packages[name] for name in ("transformers", "torch")}, errors
    (folder / "jobs.json").write_text(json.dumps(jobs))
    # -P: other files of this folder are no modules of the tools
    command, environment = [python, "-P", cutters.__file__, way, str(folder)], os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {way}: {done.stderr[-1000:]}")
    content = json.loads((folder / f"{way}.json").read_text())
    return content["versions"], content["errors"]


def ours(job: dict) -> str | None:
    """The error of slicing, if any; a sliced checkpoint must be what dropping gives, to the bit."""
    cut = Cut(job["start"], job["size"])
    try:
        slice_checkpoint(job["source"], cut, job["out"])
    except InputError as error:
        return f"refused: {error}"
    dropped = drop_layers(tiny_model(job["family"], layers=LAYERS), cut)
    sliced = AutoModelForCausalLM.from_pretrained(job["out"])
    assert torch.equal(logits(sliced, prompts()), logits(dropped, prompts())), job["name"]
    return None


def judge(job: dict, error: str | None, folder: str) -> dict:
    """What became of a job: result, and what shows it."""
    if error is not None and error.startswith("refused: "):
        return {"result": "refused", "reason": plain(error.removeprefix("refused: "), folder)}
    if error is not None:
        return {"result": "fails", "error": plain(error, folder)}
    expected, expected_text = reference(job["family"], job["start"], job["size"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, report = AutoModelForCausalLM.from_pretrained(job["out"], output_loading_info=True)
            found, text = logits(model.float().eval(), prompts()), generate(model, prompts())
    except Exception as problem:  # of loading or running what a tool wrote
        return {"result": "fails", "error": plain(f"{type(problem).__name__}: {problem}", folder)}
    difference, same = float((found - expected).abs().max()), torch.equal(text, expected_text)
    return {
        "result": "right" if difference <= CLOSE and same else "silently wrong",
        "largest_difference": difference,
        "same_text": same,
        # made up at random by the loader, which says so in its log
        "random_weights": len(report["missing_keys"]),
    }


def worst(results: list[dict]) -> dict:
    """Of the results of several cuts the worst, of those the one that is furthest off, and how many are like it."""
    result = min((found["result"] for found in results), key=WORST.index)
    alike = [found for found in results if found["result"] == result]
    return max(alike, key=lambda found: found.get("largest_difference", 0)) | {"cuts": len(alike)}


@functools.cache
def reference(family: str, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and text of a family's model in which the layers of a cut are identities."""
    model = without(tiny_model(family, layers=LAYERS), range(start, start + size))
    return logits(model, prompts()), generate(model, prompts(), use_cache=False)


def prompts() -> torch.Tensor:
    """Two of 24 tokens, three times as long as a sliding window."""
    return torch.randint(1, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))


def plain(message: str, folder: str) -> str:
    """A message up to the end of its first line that says something, without folders of this machine."""
    lines = [line.strip() for line in message.replace(folder, "FOLDER").splitlines() if line.strip()]
    # some errors begin their message on the line after their name
    first = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return re.sub(r"(?<![\w.])/(?:[\w.-]+/)+", "", first)[:300]


if __name__ == "__main__":
    main()
