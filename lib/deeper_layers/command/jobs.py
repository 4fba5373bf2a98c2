"""Units as jobs of the Snakefile: which command each one is, and what it needs, by the plan of its model."""

import json
import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from deeper_layers import results
from deeper_layers.checks import LAYERS
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameter_texts import TASK, block_sizes, split
from deeper_layers.experiments.parameters import (
    ComparedHealingsParameters,
    HealingParameters,
    Parameters,
    TaskParameters,
)
from deeper_layers.files import read_json

PARAMETERS = {
    "plan": TaskParameters,
    "distances": Parameters,
    "sweep": TaskParameters,
    "heal": HealingParameters,
    "report": HealingParameters,
}
NOT_TAKEN = {"plan": ("measure",), "heal": ("sizes", "rules"), "report": ("measure",)}
PLACES = ("results", "datasets")
PROGRAM, SPARE = 2000, 1.3  # MB of Python and its libraries; and of weights, what is made beside them
START, SAFETY = 10, 4  # minutes to import and open; how much longer than its products alone a unit may take
TRAINING = 4  # forwards that a step of training costs, with checkpoints of its activations


class Asked(NamedTuple):
    """What is asked of one model: an entry of the configuration."""

    model: str
    options: dict
    heal: list[int] = []
    notebooks: str | None = None

    @property
    def tasks(self) -> dict[str, str]:
        """Each task as it is written, by what its files are called."""
        return {results.slug(task): task for task in split(self.parameters("sweep").tasks)}

    @property
    def needs_distances(self) -> bool:
        return "similarity" in self.parameters("sweep").rule_list

    def given(self, command: str) -> dict:
        """The options that a command takes."""
        known = PARAMETERS[command].model_fields.keys() - {"model", *NOT_TAKEN.get(command, ())}
        return {name: value for name, value in self.options.items() if name in known}

    def parameters(self, command: str) -> Parameters:
        """As a command takes them. Raises InputError for an option that is none, or an impossible value."""
        return PARAMETERS[command](model=self.model, **self.given(command))

    def command(self, command: str, **more) -> str:
        """The command as it is typed, without `deeper-layers`."""
        return shlex.join([command, self.model, *flags(self.given(command) | more), "--json"])

    @property
    def tokens_of_healing(self) -> int:
        return self.parameters("heal").config().tokens


def asked_of(config: dict, model: str, entry: dict) -> Asked:
    """An entry of the configuration, over what all of them share.

    Raises InputError for an option that no command takes, or a value that none could.
    """
    options = config.get("options", {}) | entry.get("options", {})
    shared = {} if config.get("results") is None else {"results": config["results"]}
    if strange := options.keys() - HealingParameters.model_fields.keys():
        raise InputError(
            f"options of {model} have {min(strange)!r}, expected some of {', '.join(HealingParameters.model_fields)}"
        )
    heal = entry.get("heal", config.get("heal", []))
    asked = Asked(model, options | shared, heal, entry.get("notebooks", config.get("notebooks")))
    if asked.options.get("measure") is False and asked.notebooks:
        raise InputError(
            f"options of {model} have measure: false, and notebooks measure what they show: set notebooks to null, or "
            "leave measure out"
        )
    for command in PARAMETERS:
        asked.parameters(command)
    return asked


def config_of(given: dict, notebooks: str, answers: Path, no_site: bool) -> dict:
    """The configuration of one model, of what was typed for `report`; paths as they are from anywhere."""
    options = {
        name: str(Path(value).absolute()) if name in PLACES and value else value for name, value in given.items()
    }
    model, folder = options.pop("model"), options.pop("results", None)
    sizes = HealingParameters(**given).sizes
    heals = sizes != "all" and {"04", ComparedHealingsParameters.notebook} & set(split(notebooks))
    return {
        "models": [{"model": str(Path(model).absolute()) if Path(model).exists() else model}],
        "options": options, "heal": block_sizes(sizes, LAYERS) if heals else [], "notebooks": notebooks,
        "results": folder, "answers": str(answers), "site": not no_site,
    }  # fmt: skip


def flags(options: dict) -> list[str]:
    """Options as they are typed: what is on by itself has a word to turn it off alone."""
    typed = []
    for name, value in options.items():
        if (field := HealingParameters.model_fields.get(name)) and field.default is True:
            name, value = f"no_{name}", not value
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            typed += [flag] if value else []
        else:
            typed += [flag, "none" if value is None else str(value)]
    return typed


# ---- what a job needs ----------------------------------------------------------------------------------------


def megabytes(plan: Path, asked: Asked, attempt: int = 1) -> int:
    """Memory of a job: weights, what a sweep may keep beside them, the program. Twice as much at a second attempt."""
    sizes = read_json(plan)["sizes"]
    weights = sizes[0]["bytes"] / 1e6 if sizes else 0
    kept = asked.parameters("sweep").memory_bytes / 1e6
    return attempt * math.ceil(SPARE * weights + kept + PROGRAM)


def minutes(plan: Path, flops: int | float, otherwise: int, task: str | None = None, tokens: int | None = None) -> int:
    """Time of a job on a machine of so many products a second: of a task as it is written, of training, or else
    of distances.

    `otherwise` where the plan does not know it.
    """
    known = read_json(plan)
    steps = _layer_steps(known, task, tokens)
    if steps is None or not known["sizes"]:
        return otherwise
    of_a_layer = known["sizes"][0]["parameters"] / known["layers"]
    return START + math.ceil(SAFETY * 2 * steps * of_a_layer / flops / 60)


def _layer_steps(plan: dict, task: str | None, tokens: int | None) -> int | None:
    """None where the plan does not know them; 0 of what is measured already."""
    if tokens is not None:
        return TRAINING * tokens * plan["layers"]
    if task is None:
        return (plan["distances"] or {}).get("layer_steps_at_most", 0)
    name = TASK.fullmatch(task)
    found = next((one for one in plan["tasks"] if name and one["task"] == name[1]), None)
    if found is None or "unit" in found:
        return None if found is None else 0
    return None if found["generated"] or not found["layer_steps"] else found["layer_steps"][1]


def forget_lost(answers: Iterable[Path]) -> list[Path]:
    """Remove the answers of commands whose units are gone: their jobs are to be done again."""
    lost = []
    for answer in answers:
        try:
            content = json.loads(answer.read_text())
        except (OSError, ValueError):
            continue  # nothing of ours
        named = content.get("units", [content["unit"]] if content.get("unit") else [])
        if not all(Path(unit).exists() for unit in named):
            answer.unlink()
            lost.append(answer)
    return lost
