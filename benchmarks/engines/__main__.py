"""Run the engines and write what came of it into measured/engines.json; what was answered is not asked again.

    python -m benchmarks.engines                     every engine
    python -m benchmarks.engines vllm llama.cpp      some of them; what is known of the others stays
    python -m benchmarks.engines --families llama,gemma2 transformers

Each engine's environment (one to four gigabytes) is made in a folder of the cache, which can be removed afterwards.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
import transformers

from benchmarks.engines import checkpoints
from benchmarks.engines.checkpoints import CUTS, LAYERS, TOKENS, WHOLE
from benchmarks.engines.environments import ENGINES, python_of, versions_of
from benchmarks.harness import MEASURED, ROOT
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, first_line
from deeper_layers.export.engines import TABLE
from deeper_layers.files import write_file
from deeper_layers.models import device_name
from deeper_layers.package_index import cache_folder
from deeper_layers_companion.results import provenance
from tests.tiny import ALL_FAMILIES

SECONDS = 600  # an engine that is silent for longer at one folder is ended
FILE = MEASURED / "engines.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", choices=[[], *ENGINES], metavar="ENGINE", help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--families", default=",".join(ALL_FAMILIES), help="some of them, with commas")
    parser.add_argument("--work", type=Path, default=cache_folder() / "engines", help="where all that is made lies")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    (options.work / "answers").mkdir(parents=True, exist_ok=True)
    for name in options.engines or ENGINES:
        try:
            tried = try_engine(name, options.families.split(","), options.work)
        except InputError as error:
            tried = {"label": ENGINES[name].label, "not_tried": first_line(error)}
            print(f"error: {name}: {first_line(error)}", file=sys.stderr)
        keep(name, tried)


def try_engine(name: str, families: list[str], work: Path) -> dict:
    """What an engine makes of each family's cuts, and of the whole models where it makes something else of a cut."""
    python, saved = python_of(name, work), write_sources(work)
    families = [family for family in families if family in saved]
    answers = ask(name, python, [(family, cut) for family in families for cut in cuts_of(name, family)], work)
    found = {family: checkpoints.judge(work, name, family, answers) for family in families}
    wrong = [family for family in families if found[family]["result"] in checkpoints.UNEXPLAINED]
    answers = ask(name, python, [(family, WHOLE) for family in wrong], work)
    found |= {family: checkpoints.judge(work, name, family, answers) for family in wrong}
    for family, result in found.items():
        print(f"{name}: {family}: {result['result']}", file=sys.stderr)
    return {"label": ENGINES[name].label, "versions": versions_of(name, work), "families": found, "saved_by": saved}


def write_sources(work: Path) -> dict[str, str]:
    """Which environment saved the whole checkpoint of each family: the oldest transformers that can."""
    saved: dict[str, str] = {}
    for name in ("transformers-oldest", "transformers"):
        jobs = [checkpoints.source_job(work, family) for family in ALL_FAMILIES if family not in saved]
        python = Path(sys.executable) if name == "transformers" else python_of(name, work)
        answers = run("write", python, jobs, work / "answers" / f"written-by-{name}.jsonl", work)
        saved |= {job["name"]: name for job in jobs if "error" not in answers[job["name"]]}
    return saved


def cuts_of(name: str, family: str) -> tuple[Cut, ...]:
    """The cuts that an engine is given: of a slow one both only where it counts the family's layers."""
    engine = ENGINES[name]
    counts = any(line.engine == engine.counts_as and line.family == family for line in TABLE)
    return CUTS if counts or not engine.slow else CUTS[:1]


def ask(name: str, python: Path, wanted: list[tuple[str, Cut]], work: Path) -> dict[str, dict]:
    """An engine's answers, by the name of family and cut: those that it gave before, and those that it gives now."""
    answers, jobs = work / "answers" / f"{name}.jsonl", []
    make = {"llama.cpp-sliced": checkpoints.gguf_of, "llama.cpp-pruned": checkpoints.pruned_gguf_of}.get(name)
    if make:  # its converter has to be given the whole models first
        whole = [checkpoints.job(family, WHOLE, work / "sources" / family, 0) for family in dict(wanted)]
        run(ENGINES[name].way, python, whole, work / "answers" / "llama.cpp-whole.jsonl", work)
    for family, cut in wanted:
        try:
            jobs.append(checkpoints.job(family, cut, (make or checkpoints.folder_of)(work, family, cut)))
        except checkpoints.NotConverted as error:
            add(answers, checkpoints.name_of(family, cut), str(error))
        except InputError as error:
            add(answers, checkpoints.name_of(family, cut), f"{checkpoints.OURS}{error}")
    return run(ENGINES[name].way, python, jobs, answers, work)


def run(way: str, python: Path, jobs: list[dict], answers: Path, work: Path) -> dict[str, dict]:
    """Give an engine its jobs, in one process; in another from the next job on where it dies or hangs."""
    (work / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [python, "-P", Path(__file__).with_name("answering.py"), way, work / "jobs.json", answers]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # nothing of this project is in an engine's environment
    while left := [job["name"] for job in jobs if job["name"] not in read_answers(answers)]:
        print(f"{answers.stem}: {len(left)} of {len(jobs)} folders to go", file=sys.stderr)
        with open(answers.with_suffix(".log"), "a", encoding="utf-8") as log:
            given = {"stdout": log, "stderr": log, "env": environment, "timeout": SECONDS * len(left)}
            try:
                end = subprocess.run([str(word) for word in command], **given).returncode
            except subprocess.TimeoutExpired:
                end = "a timeout"
        found = read_answers(answers)
        if still := [name for name in left if name not in found]:
            add(answers, still[0], f"the process ended with {end}")
    return read_answers(answers)


def add(answers: Path, name: str, error: str) -> None:
    with open(answers, "a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "error": error}) + "\n")


def read_answers(answers: Path) -> dict[str, dict]:
    """The answers in a file, their errors cut to a line without folders of this machine."""
    if not answers.exists():
        return {}
    found = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    return {one["name"]: one | ({"error": plain(one["error"])} if "error" in one else {}) for one in found}


def plain(message: str) -> str:
    """A message up to the end of its first line that says something, without folders of this machine."""
    lines = [line.strip() for line in message.replace(str(ROOT), "").splitlines() if line.strip()] or [""]
    first = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return re.sub(r"(?<![\w.])/(?:[\w.-]+/)+", "", first)[:240]


def keep(name: str, tried: dict) -> None:
    """Put what came of an engine into the file; what is there of the others stays, and of its other families."""
    content = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"engines": {}}
    content |= {"layers": LAYERS, "tokens": TOKENS, "cuts": [[cut.start, cut.size] for cut in CUTS]}
    before = content["engines"].get(name, {})
    if "families" in tried and before.get("versions") == tried["versions"]:
        tried["families"] = before["families"] | tried["families"]
    tried["measured"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    engines = content["engines"] | {name: tried}
    content["engines"] = {key: engines[key] for key in ENGINES if key in engines}
    content |= {"command": "python -m benchmarks.engines", "provenance": provenance(device_name())}
    write_file(FILE, f"{json.dumps(content, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
