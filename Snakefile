# Which unit on which model: each job is one unit of results/, measured by one command of `deeper-layers`.
#
#     snakemake --cores 2 --configfile config/tiny.yml                    # here
#     snakemake --profile profiles/slurm --configfile config/tiny.yml     # on the machines of SLURM
#
# A job's output is what its command answers: the unit is in results/, where a claim keeps two jobs from measuring it.
import shlex
import sys
from pathlib import Path

from snakemake.utils import min_version, validate

sys.path.insert(0, str(Path(workflow.basedir) / "lib"))
from deeper_layers import models, results
from deeper_layers.command import jobs

min_version("9.27")
workdir: workflow.basedir

if not config:

    configfile: "config/published.yml"


validate(config, "config/schema.yml")

ANSWERS = Path(config["answers"])
RANDOM = {entry["random"]: f"{ANSWERS}/models/random-{entry['random']}" for entry in config["models"] if "random" in entry}
ASKED = {}
for entry in config["models"]:
    model = entry["model"] if "model" in entry else RANDOM[entry["random"]]
    name = models.model_name(model) if "model" in entry else Path(model).name
    ASKED[results.slug(name)] = jobs.asked_of(config, model, entry)
NOTEBOOKS = [ANSWERS / model / "notebooks.json" for model, asked in ASKED.items() if asked.notebooks]
CODE = Path("lib/deeper_layers/experiments")
PYTHON = shlex.quote(sys.executable)
PROGRAM = f"OMP_NUM_THREADS={{threads}} {PYTHON} -m deeper_layers {{params.command}}"
# what is there is whole, whoever is killed, and where a job runs twice: its driver was killed and begun anew
PART = "part={output:q}.$HOSTNAME.$$; trap 'rm -f \"$part\"' EXIT; "
RUN = f'{PART}{PROGRAM} > "$part" 2>> {{log:q}} && mv "$part" {{output:q}}'

if workflow.is_main_process:
    jobs.forget_lost(ANSWERS.glob("*/*.json"))


wildcard_constraints:
    model="|".join(map(re.escape, ASKED)),
    drop=r"\d+",


def answers(model):
    """What the notebooks of a model stand on."""
    asked, at = ASKED[model], ANSWERS / model
    found = [at / "distances.json"] if asked.needs_distances else []
    return found + [at / f"sweep-{task}.json" for task in asked.tasks] + [at / f"heal-{drop}.json" for drop in asked.heal]


def made_here(wildcards):
    """The folder of a random model, which has to be made first."""
    model = ASKED[wildcards.model].model
    return [model] if model in RANDOM.values() else []


def needs(tokens=False):
    """Memory, time and accelerators of a job, by the plan of its model; of training where it has tokens."""

    def mem_mb(wildcards, input, attempt):
        return jobs.megabytes(Path(input.plan), ASKED[wildcards.model], attempt)

    def runtime(wildcards, input, attempt):
        asked = ASKED[wildcards.model]
        task = asked.tasks[wildcards.task] if "task" in wildcards.keys() else None
        of_training = asked.tokens_of_healing if tokens else None
        return attempt * jobs.minutes(Path(input.plan), config["flops"], config["minutes"], task, of_training)

    return {"mem_mb": mem_mb, "runtime": runtime} | ({"gpu": config["gpus"]} if config["gpus"] else {})


localrules:
    all,
    measured,


rule all:
    input:
        f"{ANSWERS}/site" if config["site"] else [],
        NOTEBOOKS,
        [path for model in ASKED for path in answers(model)],


rule measured:
    input:
        [path for model in ASKED for path in answers(model)],


rule random_model:
    """A small model with random weights, to try everything without a hub."""
    output:
        directory(f"{ANSWERS}/models/random-{{family}}"),
    shell:
        f"{PYTHON} -m tests.tiny {{wildcards.family}} {{output:q}}"


rule plan:
    input:
        made_here,
    output:
        ANSWERS / "{model}" / "plan.json",
    params:
        command=lambda wildcards: ASKED[wildcards.model].command("plan"),
    log:
        ANSWERS / "logs" / "{model}-plan.log",
    resources:
        mem_mb=jobs.PROGRAM,
        runtime=30,
    shell:
        RUN


rule distances:
    input:
        made_here,
        CODE / "distances.py",
        plan=ANSWERS / "{model}" / "plan.json",
    output:
        ANSWERS / "{model}" / "distances.json",
    params:
        command=lambda wildcards: ASKED[wildcards.model].command("distances"),
    log:
        ANSWERS / "logs" / "{model}-distances.log",
    threads: config["threads"]
    resources:
        **needs(),
    shell:
        RUN


rule sweep:
    input:
        made_here,
        lambda wildcards: [ANSWERS / wildcards.model / "distances.json"] * ASKED[wildcards.model].needs_distances,
        CODE / "sweeps.py",
        plan=ANSWERS / "{model}" / "plan.json",
    output:
        ANSWERS / "{model}" / "sweep-{task}.json",
    params:
        command=lambda wildcards: ASKED[wildcards.model].command(
            "sweep", tasks=ASKED[wildcards.model].tasks[wildcards.task]
        ),
    log:
        ANSWERS / "logs" / "{model}-sweep-{task}.log",
    threads: config["threads"]
    resources:
        **needs(),
    shell:
        RUN


rule heal:
    input:
        made_here,
        CODE / "healings.py",
        plan=ANSWERS / "{model}" / "plan.json",
    output:
        ANSWERS / "{model}" / "heal-{drop}.json",
    params:
        command=lambda wildcards: ASKED[wildcards.model].command("heal", drop=wildcards.drop),
    log:
        ANSWERS / "logs" / "{model}-heal-{drop}.log",
    threads: config["threads"]
    resources:
        **needs(tokens=True),
    shell:
        RUN


rule notebooks:
    """What is left to measure for a notebook is measured now; the site shows it."""
    input:
        lambda wildcards: answers(wildcards.model),
        plan=ANSWERS / "{model}" / "plan.json",
    output:
        ANSWERS / "{model}" / "notebooks.json",
    params:
        command=lambda wildcards: ASKED[wildcards.model].command(
            "report", notebooks=ASKED[wildcards.model].notebooks, out=ANSWERS / wildcards.model / "report", no_site=True
        ),
    log:
        ANSWERS / "logs" / "{model}-notebooks.log",
    threads: config["threads"]
    resources:
        **needs(tokens=True),
    shell:
        RUN


rule site:
    input:
        NOTEBOOKS,
        [path for model in ASKED for path in answers(model)],
    output:
        touch(f"{ANSWERS}/site"),
    log:
        ANSWERS / "logs" / "site.log",
    threads: config["threads"]
    resources:
        mem_mb=jobs.PROGRAM * 2,
        runtime=config["minutes"],
    shell:
        f"{shlex.quote(str(Path(sys.executable).with_name('jupyter-book')))} build book/ > {{log:q}} 2>&1"
