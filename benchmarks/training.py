"""Does a pruned folder train elsewhere? The code of the page "Your model" is run as it stands there.

    python -m benchmarks.training [transformers trl]

Writes measured/training.json: losses of each step, and whether the folder that was saved gives the logits of the model
that was trained. TRL has to be installed beside this project: it is none of its packages.
"""

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks import harness
from deeper_layers import data

DROPPED, DOCUMENTS = 8, 64
TRAINERS = {"transformers": "import AutoModelForCausalLM, AutoTokenizer", "trl": "from trl import SFTConfig"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainers", nargs="*", default=list(TRAINERS), help=f"of {', '.join(TRAINERS)}")
    trainers = parser.parse_args().trainers
    torch.set_num_threads(2)
    found = {"model": "SmolLM2-135M-Instruct", "dropped": DROPPED, "trainers": {}}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prune = [sys.executable, "-m", "deeper_layers_companion", "prune", "embedded", "pruned", "--drop", str(DROPPED)]
        subprocess.run([*prune, "--rule", "similarity"], check=True)
        for name in trainers:
            found["trainers"][name] = train(name)
    harness.keep("training", found)


def train(name: str) -> dict:
    """Losses by step of the page's code, and whether what it saved is what it trained."""
    page = (harness.ROOT / "book" / "your-model.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall("```python\n(.*?)```", page, re.S) if TRAINERS[name] in block)
    torch.manual_seed(0)
    names = {"documents": data.texts("wikipedia", split="train", documents=DOCUMENTS)}
    exec(compile(code, f"your-model.md, {name}", "exec"), names)  # noqa: S102 - the page's own code
    trainer = names["trainer"]
    losses = [round(step["loss"], 4) for step in trainer.state.log_history if "loss" in step]
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        trained = trainer.model.eval()(input_ids=ids).logits
        reloaded = AutoModelForCausalLM.from_pretrained(Path("trained"), dtype="float32")(input_ids=ids).logits
    versions = {package: importlib.metadata.version(package) for package in dict.fromkeys(["transformers", name])}
    return {"versions": versions, "losses": losses, "reloaded_equal": bool(torch.equal(trained, reloaded))}


if __name__ == "__main__":
    main()
