"""Would the tests notice? One small change of the code at a time, by mutmut, and which of them no test fails for.

    python -m tests.mutants cuts similarity     # some rooms, or parts of one; without a word: all of PARTS
    python -m tests.mutants --sample 200        # so many of each, drawn, and the same ones each time
    python -m tests.mutants --survivors cuts    # what survived, as a difference each

It needs the extra `mutants`, and works in `.mutants/`, a copy: interrupted it goes on, and what was killed and has not
changed since is not tried again. Two or three changes a second: some minutes for `cuts`, much more for all. What
survives and is not the same program in other words is a missing test; what may survive stands in survivors.md, by its
changed line.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OF_TWO_FAMILIES = "not (mistral or qwen or gemma2 or phi or gpt)"  # llama and gemma3: alike layers, and several kinds
# of the ground rooms and of what numbers go through: its files below deeper_layers, the tests that are to notice, and
# of these (as pytest's -k says it) the ones that are quick: what survives is seen by all of them
PARTS = {
    "cuts": (["cuts.py"], ["test_pruning.py"], ""),
    "pruning": (["pruning.py"], ["test_pruning.py"], OF_TWO_FAMILIES),
    "similarity": (["similarity.py"], ["test_similarity.py"], OF_TWO_FAMILIES),
    "rules": (["rules/*.py"], ["test_rules.py"], ""),
    "results": (
        ["results/*.py"],
        ["test_schema.py", "test_results.py", "test_damage.py", "test_faulty_results.py"],
        "not (killed_before or killed_twice or any_call or vanishes or never_mind or adapters or damaged or published)",
    ),
    "statistics": (["report/estimates.py", "report/pairing.py"], ["test_estimates.py", "test_report.py"], ""),
    "family": (["sweeping/tree.py", "sweeping/walk.py", "sweeping/lending.py"], ["test_tree.py", "test_sweep.py"], ""),
}  # fmt: skip
COPIED = ("lib", "tests", "book", "benchmarks", "notebooks", "results")  # lib by its name: what a checkout is known by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--survivors", action="store_true", help="try nothing, show what survived before")
    parser.add_argument("--sample", type=int, help="how many of each part; else all")
    parser.add_argument("--at-once", type=int, default=os.cpu_count())
    options = parser.parse_args()
    for part in options.parts or PARTS:
        folder = ROOT / ".mutants" / part
        if not options.survivors:
            prepare(folder, part)
            if names := to_try(folder, options.sample):
                mutmut(folder, "run", "--max-children", str(options.at_once), *names)
        report(folder, part, options.survivors)


def prepare(folder: Path, part: str) -> None:
    """A copy of what the tests of a part need, with mutmut's settings: the package in src, where mutmut expects it."""
    files, tests, quick = PARTS[part]
    for name in COPIED:
        copy(ROOT / name, folder / name)
        shutil.rmtree(folder / "mutants" / name, ignore_errors=True)  # mutants may have written there
    copy(ROOT / "lib", folder / "src")
    settings = (ROOT / "pyproject.toml").read_text().replace('pythonpath = [".", "lib"]', 'pythonpath = [".", "src"]')
    settings += f"""
[tool.mutmut]
source_paths = ["src/"]
only_mutate = {[f"src/deeper_layers/{name}" for name in files]}
also_copy = {list(COPIED)}
pytest_add_cli_args_test_selection = {[f"tests/{name}" for name in tests]}
pytest_add_cli_args = {["-k", quick] if quick else []}
process_isolation = "forkserver"
"""
    (folder / "pyproject.toml").write_text(settings)


def copy(source: Path, target: Path) -> None:
    """A folder as it is now, with the times of its files: by these mutmut knows what has changed."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("_build", "executed", "__pycache__"))


def to_try(folder: Path, count: int | None) -> list[str]:
    """All mutants, or so many of them, but for those that were killed: what survived meets the tests of today."""
    mutmut(folder, "run", "none", fails=True)  # makes all, and then finds that none has this name
    made = [json.loads(path.read_text())["exit_code_by_key"] for path in sorted(folder.rglob("src/**/*.py.meta"))]
    killed = {name: code == 1 for of_file in made for name, code in of_file.items()}
    names = random.Random(0).sample(list(killed), min(count, len(killed))) if count else list(killed)
    return [name for name in names if not killed[name]]


def mutmut(folder: Path, *words: str, fails: bool = False) -> str:
    """What mutmut prints; its progress goes to stderr."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    shown = sys.stderr if words[0] == "run" else subprocess.PIPE
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *words], cwd=folder, env=environment, stdout=shown, text=True
    )
    if done.returncode and not fails:
        sys.exit(f"mutmut {words[0]} ended with {done.returncode} in {folder}")
    return done.stdout or ""


def report(folder: Path, part: str, differences: bool) -> None:
    found = [line.strip().rpartition(": ")[::2] for line in mutmut(folder, "results", "--all", "true").splitlines()]
    states = [state for _, state in found]
    killed = sum(state in ("killed", "timeout") for state in states)
    tried, listed = killed + states.count("survived"), (ROOT / "tests" / "survivors.md").read_text()
    share, unreached = killed / max(1, tried), states.count("no tests")
    print(f"{part}: {killed} of {tried} killed ({share:.0%}), {unreached} reached by no test, {len(states)} in all")
    for name, state in found:
        if state == "survived":
            difference = mutmut(folder, "show", name)
            known = "listed" if all(f"`{line}`" in listed for line in put_in(difference)) else "NEW"
            print(difference if differences else f"  {known}  {name}  {' '.join(put_in(difference))}")


def put_in(difference: str) -> list[str]:
    """The lines that a mutant has and the code has not."""
    return [line[1:].strip() for line in difference.splitlines() if line[:1] == "+" and line[:3] != "+++"]


if __name__ == "__main__":
    main()
