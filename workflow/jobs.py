"""Results as jobs of the Snakefile: which command each one is, and what it needs, by the plan of its model."""

import json
import math
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import click

from deeper_layers.errors import InputError
from deeper_layers.files import read_json
from deeper_layers_companion import results
from deeper_layers_companion.command.group import main
from deeper_layers_companion.experiments.parameters import HealingParameters, TaskParameters, split_list

PROGRAM, SPARE = 2000, 1.3  # MB of Python and its libraries; and of weights, what is made beside them
START, SAFETY = 10, 4  # minutes to import and open; how much longer than its products alone a result may take
TRAINING = 4  # forwards that a step of training costs, with checkpoints of its activations


class Asked(NamedTuple):
    """What is asked of one model: an entry of the configuration."""

    model: str
    options: dict
    heal: list[int] = []
    notebooks: str | None = None

    @property
    def swept(self) -> TaskParameters:
        """As a sweep takes it."""
        return TaskParameters(model=self.model, **_of(TaskParameters, self.options))

    @property
    def tasks(self) -> dict[str, str]:
        """Each task as it is written, by what its files are called."""
        return {results.slugify(task): task for task in split_list(self.swept.tasks)}

    @property
    def needs_distances(self) -> bool:
        return "similarity" in self.swept.rule_list

    @property
    def tokens_of_healing(self) -> int:
        return HealingParameters(model=self.model, **self.options).make_config().tokens

    def command(self, command: str, **more) -> str:
        """The command as it is typed, without `deeper-layers`, with the options that it takes."""
        subcommand = main.get_command(click.Context(main), command)
        assert subcommand is not None
        taken = {option.name for option in subcommand.params if option.name}
        given = {name: value for name, value in self.options.items() if name in taken}
        return shlex.join([command, self.model, *flags(given | more), "--json"])


def flags(options: dict) -> list[str]:
    """Options as they are typed: what is on by itself has a word to turn it off alone."""
    typed = []
    for name, value in options.items():
        name, value = ("no_measure", not value) if name == "measure" else (name, value)
        flag = f"--{name.replace('_', '-')}"
        typed += [flag] * value if isinstance(value, bool) else [flag, "none" if value is None else str(value)]
    return typed


def _of(kind: type, options: dict) -> dict:
    return {name: value for name, value in options.items() if name in kind.model_fields}


def asked_of(config: dict, model: str, entry: dict) -> Asked:
    """An entry of the configuration, over what all of them share.

    Raises InputError for an option that no command takes, or a value that none could.
    """
    options = config.get("options", {}) | entry.get("options", {})
    options |= {} if config.get("results") is None else {"results": config["results"]}
    notebooks = entry.get("notebooks", config.get("notebooks"))
    if options.get("measure") is False and notebooks:
        raise InputError(
            f"options of {model} have measure: false, and notebooks measure what they show: set notebooks to null, or "
            "leave measure out"
        )
    HealingParameters(model=model, **options)
    return Asked(model, options, entry.get("heal", config.get("heal", [])), notebooks)


def megabytes(plan: Path, asked: Asked, attempt: int = 1) -> int:
    """Memory of a job: weights, what a sweep may keep beside them, the program. Twice as much at a second attempt."""
    sizes = read_json(plan)["sizes"]
    weights = sizes[0]["bytes"] / 1e6 if sizes else 0
    return attempt * math.ceil(SPARE * weights + asked.swept.memory * 2**30 / 1e6 + PROGRAM)


def minutes(plan: Path, flops: int | float, otherwise: int, task: str | None = None, tokens: int | None = None) -> int:
    """Time of a job on a machine of so many products a second: of a task as it is written, of training on so many
    tokens, or else of distances. `otherwise` where the plan does not know it."""
    known = read_json(plan)
    steps = (known["distances"] or {}).get("layer_steps_at_most", 0)
    if tokens is not None:
        steps = TRAINING * tokens * known["layers"]
    elif task is not None:
        name = re.split("[:@/]", task)[0]
        found = next((one for one in known["tasks"] if one["task"] == name), {"generated": True})
        answered = None if found.get("generated") or not found.get("layer_steps") else found["layer_steps"][1]
        steps = 0 if "unit" in found else answered
    if steps is None or not known["sizes"]:
        return otherwise
    of_a_layer = known["sizes"][0]["parameters"] / known["layers"]
    return START + math.ceil(SAFETY * 2 * steps * of_a_layer / flops / 60)


def forget_lost(answers: Iterable[Path]) -> list[Path]:
    """Remove the answers of commands whose results are gone: their jobs are to be done again."""
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
