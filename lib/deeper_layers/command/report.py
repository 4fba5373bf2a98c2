"""`deeper-layers report`: every notebook on one model, then the site."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from deeper_layers import checks, files, models, results
from deeper_layers.command import jobs
from deeper_layers.command.answers import Answer, answering
from deeper_layers.command.options import MODEL, Place, asking
from deeper_layers.command.plan import in_words, planned, source_of
from deeper_layers.errors import ERROR_NAMES, InputError
from deeper_layers.experiments.block_parameters import ScanParameters, WhichLayersParameters
from deeper_layers.experiments.common_parameters import Shown
from deeper_layers.experiments.parameter_texts import split
from deeper_layers.experiments.parameters import ComparedHealingsParameters, HealingParameters, SweepParameters
from deeper_layers.package_index import file_hash

IF_NAMED = (ComparedHealingsParameters, WhichLayersParameters, ScanParameters)  # hours, not minutes
MARK = "report.json"  # of a folder of reports
NEEDED = ("papermill", "ipykernel", "matplotlib")


@click.command(
    help=f"""
    Run the notebooks on MODEL, the plan of its sweep first, and build the site with its pages.

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
@click.option("--out", type=Place(), help="folder of the notebooks with their figures  [default: "
              "report/ and the model's name, here]")  # fmt: skip
@click.option("--cluster", type=click.Choice(["local", "slurm"]), help="each unit a job, on this machine or of SLURM, "
              "with the profile of this name in workflow/profiles/")  # fmt: skip
@click.option("--no-site", is_flag=True, help="leave out the site, which is built where results are the repository's")
@answering
def report(given: dict, notebooks: str, out: Path | None, cluster: str | None, no_site: bool) -> Answer:
    root = _checkout()
    _check_installed()
    kinds = _chosen(notebooks)
    asked = {notebook: _of(kind, given) for notebook, kind in kinds.items()}
    for kind in (HealingParameters, *kinds.values()):
        kind(**_of(kind, given))  # a mistake is found before anything runs
    name = models.model_name(given["model"])
    if cluster and out:
        raise InputError(
            f"out is {str(out)!r}, and with --cluster notebooks lie in jobs/ of the repository: leave it out"
        )
    if cluster:
        return _as_jobs(root, given, name, notebooks, cluster, no_site)
    out = checks.new_folder("out", out or Path("report") / results.slug(name), writable=True)
    kept = Kept(root, out)
    for notebook in asked:
        kept.check(out / f"{notebook}.ipynb")
    swept = SweepParameters(**_of(SweepParameters, given))
    print(in_words(planned(swept, source_of(swept))), flush=True)
    files.check_writable(out)
    made, failed = {}, {}
    for number, (notebook, parameters) in enumerate(asked.items(), 1):
        start = time.monotonic()
        print(f"[{number}/{len(asked)}] {notebook}", flush=True)
        path = out / f"{notebook}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / path.name
            mistake = _run(root / "notebooks" / path.name, run, parameters)
            if run.exists():  # with what went wrong in it, where something did
                kept.write(path, run.read_bytes())
        if mistake is None:
            made[notebook] = str(path)
        else:
            failed[notebook] = mistake
        print(f"[{number}/{len(asked)}] {mistake or path} ({time.monotonic() - start:.0f} s)", flush=True)
    site = None
    if made and not no_site:
        site = _site(root, given)
    if failed:
        said = "; ".join(f"{notebook}: {mistake}" for notebook, mistake in failed.items())
        raise InputError(f"{len(failed)} of {len(asked)} notebooks were not made: {said}; mend that and run this again")
    lines = [*made.values(), *([f"site: {site}"] if site else [])]
    return Answer("\n".join(lines), {"model": name, "notebooks": made, "site": str(site) if site else None})


class Kept:
    """The notebooks in a folder of reports that nobody changed since they were written: only these are replaced.

    The folder's mark says the hashes of each, that of the next one before it takes its place.

    Raises InputError for a folder that holds anything and no mark, and for `notebooks/`.
    """

    def __init__(self, root: Path, out: Path):
        self.mark, self.hashes = out / MARK, {}
        if out.resolve() == (root / "notebooks").resolve():
            raise InputError(f"out is {str(out)!r}, where the notebooks are that are run: name another folder")
        files.clear_all(out)
        if out.is_dir() and any(out.iterdir()):
            try:
                self.hashes = {
                    str(name): list(known) for name, known in files.read_json(self.mark)["notebooks"].items()
                }
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise InputError(
                    f"out is {str(out)!r}, which holds files and no {MARK} of an earlier report: name a folder that is "
                    "new or empty"
                ) from error

    def check(self, path: Path) -> None:
        """Raise InputError where something has the name that is not as it was written here."""
        if os.path.lexists(path) and (path.is_symlink() or file_hash(path) not in self.hashes.get(path.name, [])):
            raise InputError(f"{path} was changed since report wrote it: move it away, or name another --out")

    def write(self, path: Path, content: bytes) -> None:
        self.check(path)
        before = [file_hash(path)] if path.exists() else []
        self.hashes[path.name] = [*before, hashlib.sha256(content).hexdigest()]
        files.write_file(self.mark, json.dumps({"notebooks": self.hashes}, indent=1).encode())
        with files.atomic_file(path, self.check) as made:
            made.write_bytes(content)


def _as_jobs(root: Path, given: dict, name: str, notebooks: str, profile: str, no_site: bool) -> Answer:
    """The Snakefile with a configuration for one model, which is kept: what was asked for can be asked again."""
    if importlib.util.find_spec("snakemake") is None:
        raise InputError("--cluster needs snakemake: install it with pip install 'deeper-layers[cluster]'")
    answers = root / "jobs" / results.slug(name)
    config = jobs.config_of(given, notebooks, answers, no_site or not _shown(root, given))
    file = answers / "config.json"
    files.check_writable(answers)
    files.write_file(file, json.dumps(config, indent=1).encode())
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--profile",
        f"workflow/profiles/{profile}",
        "--configfile",
        str(file),
    ]
    if subprocess.run(command, cwd=root, stdout=sys.stderr).returncode:
        raise InputError(
            f"not all jobs were done: {answers / 'logs'} says why; the same command does those that are left"
        )
    made = sorted(map(str, answers.glob("*/report/*.ipynb")))
    return Answer("\n".join([str(file), *made]), {"model": name, "config": str(file), "notebooks": made})


def _shown(root: Path, given: dict) -> bool:
    """Whether the site shows these results."""
    return results.results_folder(given.get("results")).resolve() == (root / "results").resolve()


def _checkout() -> Path:
    root = results.repository()
    if root is None:
        raise InputError(
            f"there are no notebooks in {Path.cwd()}: they are in the repository and not in the installed package; "
            "clone the repository, and run this inside it"
        )
    return root


def _check_installed() -> None:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise InputError(f"report needs {', '.join(missing)}: install them with pip install 'deeper-layers[book]'")


def _kinds(kind: type[Shown] = Shown) -> Iterator[type[Shown]]:
    """Every class of parameters that is a notebook's."""
    if kind.notebook:
        yield kind
    for more in kind.__subclasses__():
        yield from _kinds(more)


def _chosen(notebooks: str) -> dict[str, type[Shown]]:
    """The notebooks that were asked for, in order, with the classes of their parameters."""
    kinds = {kind.notebook: kind for kind in sorted(_kinds(), key=lambda kind: kind.notebook)}
    if notebooks == "all":
        return {name: kind for name, kind in kinds.items() if kind not in IF_NAMED}
    wanted = split(notebooks)
    found = {name: kind for name, kind in kinds.items() if {name, name[:2]} & set(wanted)}
    if not found or set(wanted) - {*found, *(name[:2] for name in found)}:
        raise InputError(f"notebooks is {notebooks!r}, expected 'all' or some of {', '.join(kinds)}, like '01, 02'")
    return found


def _of(kind: type[Shown], given: dict) -> dict:
    """Of what was typed, the parameters of a notebook."""
    return {name: value for name, value in given.items() if name in kind.model_fields}


def _run(source: Path, out: Path, parameters: dict) -> str | None:
    """Run a notebook where the user stands; what went wrong in one line, or None."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    # a virtual environment's own kernel before one that the user once installed for another interpreter
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    # bars are lines of text there, and nothing has to be installed for that
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    with tempfile.TemporaryDirectory() as folder:
        # sockets in a folder of our own: no two kernels can race for a port
        ipc = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        try:
            papermill.execute_notebook(
                source, out, parameters=parameters, kernel_name="python3", cwd=Path.cwd(), progress_bar=False,
                stderr_file=sys.stderr, config=Config({"KernelManager": ipc}),
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            return str(error.evalue) if error.ename in ERROR_NAMES else f"{error.ename}: {error.evalue}"
        except DeadKernelError:
            return "its process was killed, as it is where memory ends: give it a smaller model or shorter sequences"
    return None


def _site(root: Path, given: dict) -> Path | None:
    """Build the site, where it shows what was measured; its page."""
    if not _shown(root, given):
        print(f"no site: it shows {root / 'results'}, and these results are in {given['results']}", flush=True)
        return None
    if importlib.util.find_spec("jupyter_book") is None:
        raise InputError("the site needs jupyter-book: install it with pip install 'deeper-layers[book]', or --no-site")
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "book/"]
    if subprocess.run(command, cwd=root, stdout=sys.stderr).returncode:
        raise InputError(f"the site could not be built: {' '.join(command)} in {root} says why")
    return root / "book" / "_build" / "html" / "index.html"
