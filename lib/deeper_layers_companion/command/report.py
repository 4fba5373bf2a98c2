"""`deeper-layers report`: run every notebook on one model, then build the site."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from deeper_layers import checks, files, models
from deeper_layers.errors import ERROR_NAMES, InputError
from deeper_layers.package_index import file_hash
from deeper_layers_companion import results
from deeper_layers_companion.command.options import Answer, exclude, format_table, subcommand
from deeper_layers_companion.jobs import notebook_options
from deeper_layers_companion.jobs.options import HealingParameters, split_list
from deeper_layers_companion.jobs.plan import plan_notebooks
from deeper_layers_companion.jobs.price import duration
from deeper_layers_companion.results.places import VARIABLE

# hours, not minutes
ONLY_IF_NAMED = (
    "04-healing",
    "05-which-layers",
    "06-letters-or-words",
    "11-what-do-the-last-layers-hold",
)
CLASSES = {
    cls.notebook: cls for cls in vars(notebook_options).values() if getattr(cls, "notebook", "")
}
KILLED = "its process was killed, as it is where memory ends: give it a smaller model or shorter sequences"
MARK = "report.json"  # file in a folder of reports with the hashes of all notebooks that were written there


@subcommand(
    HealingParameters,
    "Run the notebooks of one model, then build the site.",
    but=("measure",),
    defaults=False,
)
@click.option(
    "--notebooks",
    default="all",
    show_default=True,
    help='which: like "01, 02"; 04 heals, 05 and 06 measure every block, 11 asks a study: only where they are named',
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="folder of the notebooks with their figures  [default: report/ and the model's name, here]",
)
@click.option(
    "--cluster",
    type=click.Choice(["local", "slurm"]),
    help="each result a job, on this machine or of SLURM, with the profile of this name in workflow/profiles/",
)
@click.option("--no-site", is_flag=True, help="leave out the site")
def report(
    parameters: HealingParameters,
    notebooks: str,
    out: Path | None,
    cluster: str | None,
    no_site: bool,
) -> Answer:
    """Run the notebooks on MODEL, and build the site with its pages. First comes what they will measure, and its price.

    Each option goes to the notebooks that have it; what is left out is each notebook's own. What is measured is kept as
    it is finished, so the same command goes on where it was interrupted. A notebook that can't be made is left out, and
    named in the end.

    \b
    deeper-layers report embedded --notebooks "01, 02"
    deeper-layers report ORGANISATION/NAME --datasets MIRROR --preset "Llama-2 7B"
    deeper-layers report ORGANISATION/NAME --cluster slurm
    """
    root = results.repository()
    if root is None:
        raise InputError(
            "notebooks are in the repository and not in the installed package: clone it, and run this there"
        )
    exclude("cluster", "out")
    import papermill  # noqa: F401  # not installed everywhere: this is said before anything is planned

    name = models.model_name(parameters.model)
    classes = {of: CLASSES[of] for of in choose_notebooks(notebooks)}
    elsewhere = parameters.folder.resolve() != (root / "results").resolve()
    if cluster:
        return _run_as_jobs(root, parameters, notebooks, cluster, no_site or elsewhere)
    out = checks.check_new_folder(
        "out", out or Path("report") / results.slugify(name), writable=True
    )
    files.remove_leftovers(out)
    for notebook in classes:
        check_unchanged(out / f"{notebook}.ipynb")
    typed = {
        of: parameters.model_dump(exclude_unset=True, include={*cls.model_fields})
        for of, cls in classes.items()
    }
    print(_describe_price(typed), flush=True)
    written = {}
    failed = {}
    for number, notebook in enumerate(classes, 1):
        print(f"[{number}/{len(classes)}] {notebook}", flush=True)
        path = out / f"{notebook}.ipynb"
        problem = _make_notebook(root / "notebooks" / path.name, path, typed[notebook])
        if problem:
            failed[notebook] = problem
        else:
            written[notebook] = str(path)
    site = None
    if written and not no_site:
        site = str(_build_site(root, parameters.folder if elsewhere else None, out))
    if failed:
        errors = "; ".join(f"{notebook}: {mistake}" for notebook, mistake in failed.items())
        raise InputError(
            f"{len(failed)} of {len(classes)} notebooks were not made: {errors}; fix this, run it again"
        )
    lines = list(written.values())
    if site:
        lines.append(f"site: {site}")
    return Answer({"model": name, "notebooks": written, "site": site}, ["\n".join(lines)])


def _describe_price(typed: dict[str, dict]) -> str:
    """What notebooks with these parameters will measure, and how long it takes, as a table."""
    rows = plan_notebooks(
        {notebook: CLASSES[notebook](**values) for notebook, values in typed.items()}
    )
    if not rows:
        return "nothing to measure: results hold all of it"
    total = duration(sum(row["seconds"] or 0 for row in rows))
    for row in rows:
        row["seconds"] = "not known" if row["unknown"] else duration(row["seconds"])
    return (
        f"{format_table(rows)}\ntogether about {total} on this machine as it is now, by arithmetic"
    )


def _make_notebook(source: Path, path: Path, parameters: dict) -> str | None:
    """Run a notebook and write it, with its error where it failed. Returns what went wrong; None where nothing did."""
    from nbclient.exceptions import DeadKernelError  # slow to import, as is the next
    from papermill import PapermillExecutionError

    problem = None
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / path.name
        try:
            execute_notebook(source, run, parameters, Path.cwd())
        except PapermillExecutionError as error:
            problem = (
                error.evalue if error.ename in ERROR_NAMES else f"{error.ename}: {error.evalue}"
            )
        except DeadKernelError:
            problem = KILLED
        if run.exists():
            write_notebook(path, run.read_bytes())
    return problem


def _build_site(root: Path, folder: Path | None, out: Path) -> Path:
    """Build the site from the repository's results, or from those in a folder and the published ones, below `out`.
    Returns its first page."""
    place = root / "book"
    more = []
    environment = {}
    if folder:
        place = (out / "site").absolute()
        environment = {VARIABLE: str(folder.absolute())}
        more = ["--path-output", place]
    _run_in(
        root, Path(sys.executable).with_name("jupyter-book"), "build", "book/", *more, **environment
    )
    return place / "_build" / "html" / "index.html"


def choose_notebooks(notebooks: str) -> list[str]:
    """The names of the notebooks that the option names, in order."""
    wanted = split_list(notebooks) if notebooks != "all" else {*CLASSES} - {*ONLY_IF_NAMED}
    names = [name for name in sorted(CLASSES) if {name, name[:2]} & {*wanted}]
    if not len(names) == len(wanted) > 0:
        expected = ", ".join(sorted(CLASSES))
        raise InputError(
            f"notebooks is {notebooks!r}, expected 'all' or some of {expected}, like '01, 02'"
        )
    return names


def execute_notebook(source: Path, out: Path | None, parameters: dict, folder: Path):
    """Run a notebook in a folder, and return it with its outputs. Raises what papermill and nbclient raise."""
    import papermill  # slow to import
    from traitlets.config import Config

    from deeper_layers_companion.command.kernel import interrupt_only_cells

    # prefer the kernel of this environment to one that the user installed for another interpreter
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    # tqdm warns that IProgress is missing; its bars are lines of text in notebooks
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    # sockets of our own, as two kernels can race for a port
    with tempfile.TemporaryDirectory() as sockets:
        config = Config(
            {"KernelManager": {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}}
        )
        options = {
            "kernel_name": "python3",
            "cwd": folder,
            "progress_bar": False,
            "stderr_file": sys.stderr,
            # a kernel that is ended while it answers logs a traceback of its socket
            "extra_arguments": ["--log-level=CRITICAL"],
        }
        options |= interrupt_only_cells()
        return papermill.execute_notebook(
            source, out, parameters=parameters, config=config, **options
        )


def check_unchanged(path: Path) -> list[str]:
    """The hashes of all notebooks that were written into the folder of a notebook. Raises InputError if the folder
    holds other files, or the notebook was changed after it was written."""
    try:
        hashes = (
            files.read_json(path.with_name(MARK))["written"] if any(path.parent.glob("*")) else []
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path.parent} holds files and no {MARK} of an earlier report: name another --out"
        ) from error
    if path.is_symlink() or (path.exists() and file_hash(path) not in hashes):
        raise InputError(
            f"{path} was changed since report wrote it: move it away, or name another --out"
        )
    return hashes


def write_notebook(path: Path, content: bytes) -> None:
    """Replace an earlier notebook. Its hash is written first, so that an interrupted run is recognized as ours."""
    hashes = list(dict.fromkeys([*check_unchanged(path), hashlib.sha256(content).hexdigest()]))
    files.write_file(path.with_name(MARK), json.dumps({"written": hashes}, indent=1).encode())
    with files.atomic_file(path, check_unchanged) as made:
        made.write_bytes(content)


def _run_in(root: Path, *command: str | Path, **environment: str) -> None:
    words = list(map(str, command))
    if subprocess.run(words, cwd=root, stdout=sys.stderr, env=os.environ | environment).returncode:
        raise InputError(
            f"{' '.join(words)} in {root} failed and says why: the same command does what is left"
        )


def _run_as_jobs(
    root: Path, parameters: HealingParameters, notebooks: str, profile: str, no_site: bool
) -> Answer:
    """Run the Snakefile with a configuration for one model. The configuration is kept, so that it can be run again."""
    name = models.model_name(parameters.model)
    answers = root / "jobs" / results.slugify(name)
    file = answers / "config.json"
    config = make_workflow_config(parameters, notebooks, answers, no_site)
    files.write_file(file, json.dumps(config, indent=1).encode())
    snakemake = (sys.executable, "-m", "snakemake", "--profile", f"workflow/profiles/{profile}")
    _run_in(root, *snakemake, "--configfile", file)
    made = sorted(map(str, answers.glob("*/report/*.ipynb")))
    return Answer(
        {"model": name, "config": str(file), "notebooks": made}, ["\n".join([str(file), *made])]
    )


def make_workflow_config(
    parameters: HealingParameters, notebooks: str, answers: Path, no_site: bool
) -> dict:
    """The configuration of workflow/Snakefile for one model, with absolute paths."""
    options = parameters.model_dump(exclude_unset=True)
    for name in ("model", "results", "datasets"):
        if options.get(name) and (name != "model" or Path(options[name]).exists()):
            options[name] = str(Path(options[name]).absolute())
    heals = "04-healing" in choose_notebooks(notebooks) and parameters.sizes != "all"
    return {
        "models": [{"model": options.pop("model")}],
        "results": options.pop("results", None),
        "options": options,
        "heal": parameters.list_sizes(checks.LAYERS) if heals else [],
        "notebooks": notebooks,
        "answers": str(answers),
        "site": not no_site,
    }
