"""`deeper-layers` with its subcommands, and the handling of mistakes, faults and Ctrl-C."""

import os
import warnings

import click

from deeper_layers import errors
from deeper_layers_companion.command.check import check
from deeper_layers_companion.command.heal import heal
from deeper_layers_companion.command.measure import distances, scan, sweep
from deeper_layers_companion.command.plan import plan
from deeper_layers_companion.command.prune import prune
from deeper_layers_companion.command.report import report
from deeper_layers_companion.command.results import results
from deeper_layers_companion.command.tasks import tasks

INTERRUPTED = 130  # a shell's status of a process that SIGINT ended
FAULT = 70  # EX_SOFTWARE of sysexits.h


class Subcommands(click.Group):
    """Subcommands in the order in which they are used. Any error in one of them is printed as one line."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, context: click.Context):
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: click.echo(
                f"warning: {errors.one_line(str(message))}", err=True
            )
            try:
                check_working_folder()
                return super().invoke(context)
            except KeyboardInterrupt:
                message = "interrupted: what was measured in full is kept, and the same command goes on from there"
                click.echo(f"\n{message}", err=True)
                context.exit(INTERRUPTED)
            except click.ClickException as error:
                error.message = errors.one_line(error.message)  # it quotes what was typed
                raise
            except (click.exceptions.Exit, click.Abort, BrokenPipeError):
                raise  # BrokenPipeError: the reader of our output has closed the pipe
            except Exception as error:
                if os.environ.get(errors.TRACEBACK_VARIABLE):
                    raise
                message = _explain_error(error)
                if message:
                    raise click.ClickException(errors.one_line(message)) from None
                click.echo(f"Error: {errors.describe_fault(error)}", err=True)
                context.exit(FAULT)


def check_working_folder() -> None:
    """Raise InputError where the folder is gone in which the command was typed: no path means anything there."""
    with errors.as_input_error(
        "the folder in which this was typed is gone", "go to one that is there", OSError
    ):
        os.getcwd()


def _explain_error(error: Exception) -> str | None:
    """The message for an error that the user can correct; None for a fault of this software."""
    if isinstance(error, errors.InputError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install {error.name}, or 'deeper-layers[book,cluster]' for reports"
    if isinstance(error, OSError) and error.filename is not None:
        return f"can't use {error.filename} ({error.strerror}): fix this, or name another place"
    reason = errors.first_line(error)
    if errors.disk_is_full(error):
        return (
            f"can't write any more ({reason}): make room, the same command goes on where it stopped"
        )
    if errors.is_out_of_memory(error):
        advice = (
            "use a machine with more, a smaller model, shorter sequences, or --quantization nf4"
        )
        return f"out of memory ({reason}): {advice}; the same command goes on where it stopped"
    return None


@click.group(
    cls=Subcommands,
    commands=[check, plan, tasks, distances, sweep, scan, prune, heal, results, report],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="deeper-layers")
def main() -> None:
    """How many layers can a language model lose, and what is lost with them?

    \b
    deeper-layers plan embedded
    deeper-layers sweep embedded --tasks capitals --sizes 0-4 --limit 20
    deeper-layers prune embedded pruned --drop 4

    What is measured is kept in results/: the same command again is instant, and an interrupted one goes on where
    it stopped. A table goes to stdout, or JSON with --json; progress to stderr.

    Exit status: 0 done; 1 a value, file or model can't be used, which one line on stderr says; 2 a command that is not
    written right; 70 a fault of this software, which one line says (DEEPER_LAYERS_TRACEBACK=1 shows its traceback);
    130 interrupted.

    \b
    Completion of commands and options, in bash (or zsh_source, fish_source):
    eval "$(_DEEPER_LAYERS_COMPLETE=bash_source deeper-layers)"
    """
