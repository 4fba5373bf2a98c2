"""Run the engines and write what came of it into measured.json, engine by engine; what was answered is not asked again.

    python -m conformance                     every engine
    python -m conformance vllm llama.cpp      some of them; what is known of the others stays
    python -m conformance --families llama,gemma2 transformers

Each engine's environment (one to four gigabytes) is made in a folder of the cache, which can be removed afterwards.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
import transformers

from conformance import checkpoints, verdicts
from conformance.checkpoints import CUTS, LAYERS, TOKENS, WHOLE
from conformance.environments import ENGINES, LIBRARY, SCRIPTS, SHARED, python_of, versions_of
from conformance.measured import MEASURED, read_measured
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, first_line
from deeper_layers.export.engines import TABLE
from deeper_layers.files import write_file
from deeper_layers.models import device_name
from deeper_layers.package_index import cache_folder
from deeper_layers.results.circumstances import provenance
from tests.tiny import ALL_FAMILIES

SECONDS = 600  # an engine that is silent for longer at one folder is ended


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m conformance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "engines", nargs="*", metavar="ENGINE", help=f"of {', '.join(ENGINES)}; all where none is given"
    )
    parser.add_argument("--families", default=",".join(ALL_FAMILIES), help="some of them, with commas")
    parser.add_argument("--work", type=Path, default=cache_folder() / "conformance", help="where all that is made lies")
    options = parser.parse_args()
    names, families = options.engines or list(ENGINES), options.families.split(",")
    if strange := [name for name in names if name not in ENGINES] + [f for f in families if f not in ALL_FAMILIES]:
        parser.error(f"{strange[0]!r} is neither of {', '.join(ENGINES)} nor of {', '.join(ALL_FAMILIES)}")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            tried = try_engine(name, families, options.work)
        except InputError as error:
            tried = {"label": ENGINES[name].label, "not_tried": first_line(error)}
            print(f"error: {name}: {first_line(error)}", file=sys.stderr)
        keep(name, tried)


def try_engine(name: str, families: list[str], work: Path) -> dict:
    """What an engine makes of each family's cuts, and of the whole models where it makes something else of a cut."""
    python, versions = python_of(name, work), versions_of(name, work)
    print(f"{name}: {', '.join(map(' '.join, versions.items()))}", file=sys.stderr)
    saved = checkpoints.write_sources(work)
    families = [family for family in families if family in saved]
    answers = ask(name, python, [(family, cut) for family in families for cut in cuts_of(name, family)], work)
    found = {family: verdicts.verdict(work, name, family, answers) for family in families}
    wrong = [(family, WHOLE) for family, result in found.items() if result["result"] in verdicts.UNEXPLAINED]
    if wrong:
        answers = ask(name, python, wrong, work)
        found |= {family: verdicts.verdict(work, name, family, answers) for family, _ in wrong}
    for family, result in found.items():
        print(f"{name}: {family}: {result['result']}", file=sys.stderr)
    return {"label": ENGINES[name].label, "versions": versions, "families": found, "saved_by": saved}


def cuts_of(name: str, family: str) -> tuple[Cut, ...]:
    """The cuts that an engine is given: of a slow one both only where it counts the family's layers."""
    engine = ENGINES[name]
    counts = any(line.engine == engine.counts_as and line.family == family for line in TABLE)
    return CUTS if counts or not engine.slow else CUTS[:1]


def ask(name: str, python: Path, wanted: list[tuple[str, Cut]], work: Path) -> dict[str, dict]:
    """An engine's answers, by the name of family and cut: those that it gave before, and those that it gives now."""
    place = work / "answers"
    place.mkdir(exist_ok=True)
    answers = place / f"{name}.jsonl"
    if name == "llama.cpp-sliced":  # its converter has to be given the whole models first
        whole = [job_of(family, WHOLE, name, work / "sources" / family, 0) for family in dict(wanted)]
        run(SHARED[name], python, whole, work / "answers" / "llama.cpp-whole.jsonl", work)
    jobs = []
    for family, cut in wanted:
        try:
            make = checkpoints.gguf_of if name == "llama.cpp-sliced" else checkpoints.folder_of
            with open(os.devnull, "w") as silent, contextlib.redirect_stderr(silent):
                jobs.append(job_of(family, cut, name, make(work, family, cut), TOKENS))
        except checkpoints.NotConverted as error:
            add(answers, checkpoints.name_of(family, cut), str(error))
        except InputError as error:
            add(answers, checkpoints.name_of(family, cut), f"{verdicts.OURS}{error}")
    run(name, python, jobs, answers, work)
    return read_answers(answers, work)


def job_of(family: str, cut: Cut, name: str, folder: Path, tokens: int) -> dict:
    return {
        "name": checkpoints.name_of(family, cut),
        "folder": str(folder),
        "prompt": checkpoints.prompt(),
        "tokens": tokens,
    }


def run(name: str, python: Path, jobs: list[dict], answers: Path, work: Path) -> None:
    """Give an engine its jobs, in one process; in another from the next job on where it dies or hangs."""
    (work / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    script = SCRIPTS / ENGINES[name].script
    command = [str(python), "-P", str(Path(__file__).with_name("runner.py")), str(script), str(work / "jobs.json")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # nothing of this project is in an engine's environment
    while left := [job["name"] for job in jobs if job["name"] not in read_answers(answers, work)]:
        print(f"{name}: {len(left)} of {len(jobs)} folders to go", file=sys.stderr)
        with open(work / "answers" / f"{name}.log", "a", encoding="utf-8") as log:
            try:
                end = subprocess.run(
                    [*command, str(answers)], stdout=log, stderr=log, env=environment, timeout=SECONDS * len(left)
                ).returncode
            except subprocess.TimeoutExpired:
                end = "a timeout"
        still = [job["name"] for job in jobs if job["name"] not in read_answers(answers, work)]
        if still:
            add(answers, still[0], f"the process ended with {end}")


def add(answers: Path, name: str, error: str) -> None:
    with open(answers, "a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "error": error}) + "\n")


def read_answers(answers: Path, work: Path) -> dict[str, dict]:
    """The answers in a file, their errors cut to a line without folders of this machine."""
    if not answers.exists():
        return {}
    found = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    return {
        answer["name"]: answer | ({"error": plain(answer["error"], work)} if "error" in answer else {})
        for answer in found
    }


def plain(message: str, work: Path) -> str:
    """A message up to the end of its first line that says something, without folders of this machine."""
    lines = [line.strip() for line in message.replace(str(LIBRARY), "").splitlines() if line.strip()] or [""]
    first = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return re.sub(r"(?<![\w.])/(?:[\w.-]+/)+", "", first)[:240]


def keep(name: str, tried: dict) -> None:
    """Put what came of an engine into measured.json; what is there of the others stays."""
    content = read_measured() or {}
    content |= {"layers": LAYERS, "tokens": TOKENS, "cuts": [[cut.start, cut.size] for cut in CUTS]}
    tried["measured"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    # of some families only, what is known of the others stays
    before = content.get("engines", {}).get(name, {})
    if "families" in tried and before.get("versions") == tried["versions"]:
        tried["families"] = before["families"] | tried["families"]
    content["engines"] = {key: value for key in ENGINES
                          if (value := {**content.get("engines", {}), name: tried}.get(key))}  # fmt: skip
    content = {"command": "python -m conformance", **content, "provenance": provenance(device_name())}
    write_file(MEASURED, f"{json.dumps(content, indent=1)}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
