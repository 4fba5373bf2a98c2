"""`deeper-layers report`: every notebook on one model, then the site."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from deeper_layers import checks, files, models, results
from deeper_layers.command.answers import Answer, answering, table
from deeper_layers.command.options import MODEL, Place, asking, exclude
from deeper_layers.errors import ERROR_NAMES, InputError
from deeper_layers.experiments import notebook_parameters
from deeper_layers.experiments.lists import split
from deeper_layers.experiments.notebook_runs import execute_notebook
from deeper_layers.experiments.parameters import HealingParameters, Shown
from deeper_layers.package_index import file_hash
from deeper_layers.prices import duration
from deeper_layers.results.places import VARIABLE

IF_NAMED = ("04-healing", "05-which-layers", "06-letters-or-words")  # hours, not minutes
MARK = "report.json"  # of a folder of reports: the hashes of all notebooks that were written there


@click.command(
    help=f"""
    Run the notebooks on MODEL, and build the site with its pages. First comes what they will measure, and its price.

    Each option goes to the notebooks that have it; what is left out is each notebook's own. What is measured is kept as
    it is finished, so the same command goes on where it was interrupted. A notebook that can't be made is left out, and
    named in the end.

    \b
    deeper-layers report embedded --notebooks "01, 02"
    deeper-layers report ORGANISATION/NAME --datasets MIRROR --preset "Llama-2 7B"
    deeper-layers report ORGANISATION/NAME --cluster slurm

    {MODEL}
    """
)
@asking(HealingParameters, but=("measure",), defaults=False)
@click.option(
    "--notebooks",
    default="all",
    show_default=True,
    help='which: like "01, 02"; 04 heals, 05 and 06 measure every block of layers: made only where they are named',
)
@click.option(
    "--out",
    type=Place(),
    help="folder of the notebooks with their figures  [default: report/ and the model's name, here]",
)
@click.option(
    "--cluster",
    type=click.Choice(["local", "slurm"]),
    help="each result a job, on this machine or of SLURM, with the profile of this name in workflow/profiles/",
)
@click.option("--no-site", is_flag=True, help="leave out the site")
@answering
def report(given: dict, notebooks: str, out: Path | None, cluster: str | None, no_site: bool) -> Answer:
    if (root := results.repository()) is None:
        raise InputError(
            f"there are no notebooks in {Path.cwd()}: they are in the repository and not in the installed package; "
            "clone the repository, and run this inside it"
        )
    exclude(cluster=cluster, out=out)
    _check_installed("book", "papermill", "ipykernel", "matplotlib")
    kinds, name = _chosen(notebooks), models.model_name(given["model"])
    HealingParameters(**given)  # a mistake is found before anything runs
    asked = {notebook: kind(**_of(kind, given)) for notebook, kind in kinds.items()}
    shown = results.results_folder(given.get("results")).resolve() == (root / "results").resolve()
    if cluster:
        return _as_jobs(root, given, name, notebooks, cluster, no_site or not shown)
    out = checks.new_folder("out", out or Path("report") / results.slug(name), writable=True)
    places, hashes = {notebook: out / f"{notebook}.ipynb" for notebook in kinds}, written_before(out)
    for path in places.values():
        check_unchanged(path, hashes)
    print(_plan(asked), flush=True)
    files.check_writable(out)
    made, failed = {}, []
    for number, (notebook, path) in enumerate(places.items(), 1):
        start = time.monotonic()
        print(f"[{number}/{len(kinds)}] {notebook}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / path.name
            mistake = _run(root / "notebooks" / path.name, run, _of(kinds[notebook], given))
            if run.exists():  # with what went wrong in it, where something did
                write_notebook(path, run.read_bytes(), hashes)
        if mistake is None:
            made[notebook] = str(path)
        else:
            failed.append(f"{notebook}: {mistake}")
        print(f"[{number}/{len(kinds)}] {mistake or path} ({time.monotonic() - start:.0f} s)", flush=True)
    site = None if no_site or not made else str(_build_site(root, None if shown else given["results"], out))
    if failed:
        said = f"{len(failed)} of {len(kinds)} notebooks were not made: {'; '.join(failed)}"
        raise InputError(f"{said}; mend that and run this again")
    lines = [*made.values(), *([f"site: {site}"] if site else [])]
    return Answer("\n".join(lines), {"model": name, "notebooks": made, "site": site})


def _build_site(root: Path, results: str | None, out: Path) -> Path:
    """Build the site of the repository's results; or, below `out`, that of other results, the published ones beside."""
    _check_installed("book", "jupyter_book")
    command, place = [str(Path(sys.executable).with_name("jupyter-book")), "build", "book/"], root / "book"
    environment = {}
    if results:
        environment[VARIABLE] = str(Path(results).absolute())
        place = (out / "site").absolute()
        command += ["--path-output", str(place)]
    _run_there(root, "the site could not be built", *command, **environment)
    return place / "_build" / "html" / "index.html"


def _plan(asked: dict[str, Shown]) -> str:
    """What the notebooks will measure, with what that takes here, as a person reads it."""
    from deeper_layers.experiments.notebook_plans import plan_notebooks  # slow

    rows = plan_notebooks(asked)
    if not rows:
        return "nothing to measure: results hold all of it"
    known = [row["seconds"] for row in rows if row["seconds"] is not None]
    lines = [
        {
            "notebook": row["notebook"],
            "about": "not known" if row["seconds"] is None else duration(row["seconds"]),
            "to measure": row["what"] + (f" ({row['unknown']})" if row["unknown"] else ""),
        }
        for row in rows
    ]
    said = f"together about {duration(sum(known))} on this machine as it is now, by arithmetic"
    return f"{table(lines)}\n{said}{', without what is not known' * (len(known) < len(rows))}"


def written_before(out: Path) -> list[str]:
    """The hashes of what was written into a folder of reports, which alone is replaced.

    Raises InputError for a folder that holds anything and no mark.
    """
    files.clear_all(out)
    if not out.is_dir() or not any(out.iterdir()):
        return []
    try:
        return list(files.read_json(out / MARK)["written"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"out is {str(out)!r}, which holds files and no {MARK} of an earlier report: name a folder that is new or "
            "empty"
        ) from error


def check_unchanged(path: Path, hashes: list[str]) -> None:
    """Raise InputError where something has the name that is not as it was written here."""
    if os.path.lexists(path) and (path.is_symlink() or file_hash(path) not in hashes):
        raise InputError(f"{path} was changed since report wrote it: move it away, or name another --out")


def write_notebook(path: Path, content: bytes, hashes: list[str]) -> None:
    """Put a notebook in the place of what was written before; its hash is known before it is there."""
    check_unchanged(path, hashes)
    hashes.append(hashlib.sha256(content).hexdigest())
    files.write_file(path.with_name(MARK), json.dumps({"written": hashes}, indent=1).encode())
    with files.atomic_file(path, lambda path: check_unchanged(path, hashes)) as made:
        made.write_bytes(content)


def _as_jobs(root: Path, given: dict, name: str, notebooks: str, profile: str, no_site: bool) -> Answer:
    """The Snakefile with a configuration for one model, which is kept: what was asked for can be asked again."""
    _check_installed("cluster", "snakemake")
    answers = root / "jobs" / results.slug(name)
    file = answers / "config.json"
    files.check_writable(answers)
    files.write_file(file, json.dumps(workflow_config(given, notebooks, answers, no_site), indent=1).encode())
    failed = f"not all jobs were done, and the same command does the rest: {answers / 'logs'} has more"
    snakemake = (sys.executable, "-m", "snakemake", "--profile", f"workflow/profiles/{profile}")
    _run_there(root, failed, *snakemake, "--configfile", file)
    made = sorted(map(str, answers.glob("*/report/*.ipynb")))
    return Answer("\n".join([str(file), *made]), {"model": name, "config": str(file), "notebooks": made})


def workflow_config(given: dict, notebooks: str, answers: Path, no_site: bool) -> dict:
    """What workflow/Snakefile is told of one model; paths as they are from anywhere."""
    options, healing = dict(given), HealingParameters(**given)
    for name in ("results", "datasets"):
        if given.get(name):
            options[name] = str(Path(given[name]).absolute())
    model = options.pop("model")
    return {
        "models": [{"model": str(Path(model).absolute()) if Path(model).exists() else model}],
        "results": options.pop("results", None),
        "options": options,
        "heal": healing.size_list(checks.LAYERS)
        if healing.sizes != "all" and "04-healing" in _chosen(notebooks)
        else [],
        "notebooks": notebooks,
        "answers": str(answers),
        "site": not no_site,
    }


def _run_there(root: Path, failed: str, *command: str | Path, **environment: str) -> None:
    words = list(map(str, command))
    if subprocess.run(words, cwd=root, stdout=sys.stderr, env=os.environ | environment).returncode:
        raise InputError(f"{failed}: {' '.join(words)} in {root} says why")


def _check_installed(extra: str, *names: str) -> None:
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise InputError(f"report needs {', '.join(missing)}: install it with pip install 'deeper-layers[{extra}]'")


def _chosen(notebooks: str) -> dict[str, type[Shown]]:
    """The notebooks that were asked for, in order, with the classes of their parameters."""
    kinds = {kind.notebook: kind for kind in vars(notebook_parameters).values() if getattr(kind, "notebook", "")}
    wanted = [name for name in kinds if name not in IF_NAMED] if notebooks == "all" else split(notebooks)
    found = {name: kinds[name] for name in sorted(kinds) if {name, name[:2]} & set(wanted)}
    if not found or set(wanted) - {*found, *(name[:2] for name in found)}:
        raise InputError(
            f"notebooks is {notebooks!r}, expected 'all' or some of {', '.join(sorted(kinds))}, like '01, 02'"
        )
    return found


def _of(kind: type[Shown], given: dict) -> dict:
    """Of what was typed, the parameters of a notebook."""
    return {name: value for name, value in given.items() if name in kind.model_fields}


def _run(source: Path, out: Path, parameters: dict) -> str | None:
    """Run a notebook where the user stands; what went wrong in one line, or None."""
    from nbclient.exceptions import DeadKernelError  # slow, as is the next
    from papermill import PapermillExecutionError

    try:
        execute_notebook(source, out, parameters, Path.cwd())
    except PapermillExecutionError as error:
        return str(error.evalue) if error.ename in ERROR_NAMES else f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        return "its process was killed, as it is where memory ends: give it a smaller model or shorter sequences"
    return None
