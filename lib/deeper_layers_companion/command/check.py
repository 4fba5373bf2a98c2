"""`deeper-layers check`: whether a machine gives the right numbers, in a minute."""

import json
from pathlib import Path

import click

from deeper_layers import files
from deeper_layers_companion.command.options import MODEL, Answer, print_answer
from deeper_layers_companion.jobs.options import Parameters
from deeper_layers_companion.results.check_report import CheckReport, Trial

FIELDS = Parameters.model_fields


@click.command(
    short_help="Are the numbers right on this machine? A minute.",
    epilog=MODEL,
)
@click.argument("model", default="embedded")
@click.option("--device", default="auto", show_default=True, help=FIELDS["device"].description)
@click.option("--revision", help=FIELDS["revision"].description)
@click.option("--trust-remote-code", is_flag=True, help=FIELDS["trust_remote_code"].description)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="write a report there, a file that can be sent",
)
@print_answer
def check(
    model: str, device: str, revision: str | None, trust_remote_code: bool, report: Path | None
) -> Answer:
    """Run each thing that is done with a model, on little, on the processor in float32 and on the device in each data
    type that it has, and compare the numbers with those of a plain loop. Without a device it is the processor in
    bfloat16.

    The exit status is 1 where numbers differ by more than stated. `deeper-layers results check FILE` reads a report.

    \b
    deeper-layers check
    deeper-layers check ORGANISATION/NAME --device cuda --report check.json
    """
    from deeper_layers_companion.jobs.check import check_model  # imports torch

    if report is not None:
        files.check_absent(report)
    found = check_model(model, device, revision=revision, trust_remote_code=trust_remote_code)
    content = found.model_dump()
    parts = list(describe_report(found))
    if report is not None:
        files.write_file(report, json.dumps(content, indent=1).encode())
        parts.append(f"{report}")
    return Answer(content, parts, status=0 if found.agrees else 1)


def describe_report(report: CheckReport) -> list:
    """A report as the texts and the table of an answer."""
    done = report.provenance
    head = f"{report.model.name}, {report.layers} layers, on {done.device}: {done.seconds:.0f} s"
    return [head, [_describe_trial(trial) for trial in report.trials], report.fit]


def _describe_trial(trial: Trial) -> dict:
    difference = None
    if trial.difference is not None:
        difference = f"{trial.difference:.1e} of {trial.stated:.0e} {trial.unit}"
    says = {True: "agrees", False: "DIFFERS", None: "not tried"}[trial.agrees]
    return {
        "trial": trial.trial,
        "on": trial.device,
        "in": trial.dtype,
        "differs by": difference,
        "": says,
        "seconds": trial.seconds,
        "tokens/s": trial.pace,
        "memory, GB": None if trial.memory_bytes is None else trial.memory_bytes / 1e9,
        "why": trial.failed or trial.untried,
    }
