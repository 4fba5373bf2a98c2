"""The list of subcommands, each imported when it is asked for, and what becomes of mistakes, faults and Ctrl-C."""

import importlib
import warnings

import click

from deeper_layers import faults
from deeper_layers.errors import InputError, disk_is_full, first_line, one_line, ran_out

INTERRUPTED = 130  # what a shell says of a process that SIGINT ended
# each is the function of its name in the file of its name; imported to run it, but not to list it
SUBCOMMANDS = {
    "plan": "What a run will cost; nothing is loaded.",
    "distances": "Which layers are alike: every angular distance.",
    "sweep": "Score the pruned models on tasks of lm-eval.",
    "scan": "Score every block of so many layers, at every start.",
    "prune": "Write a checkpoint without some of its layers.",
    "heal": "Fine-tune a pruned model, keep the adapters, score it.",
    "results": "What a folder of results holds, and whether it is whole.",
    "report": "Run the notebooks of one model, then build the site.",
}


class Mistake(click.ClickException):
    """One line on stderr, exit status 1."""

    def show(self, file=None) -> None:
        click.echo(f"error: {one_line(self.message)}", file=file, err=True)


class Fault(Mistake):
    """A fault of ours: one line too, and another exit status."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h


class Subcommands(click.Group):
    """A group that imports a subcommand when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in SUBCOMMANDS:
            return None
        return getattr(importlib.import_module(f"deeper_layers.command.{name}"), name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))

    def invoke(self, context: click.Context):
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: click.echo(f"warning: {one_line(str(message))}", err=True)
            try:
                return super().invoke(context)
            except KeyboardInterrupt:
                click.echo(
                    "\ninterrupted: what was measured in full is kept, and the same command goes on from there",
                    err=True,
                )
                context.exit(INTERRUPTED)
            except click.ClickException as error:
                error.message = one_line(error.message)  # it quotes what was typed
                raise
            except (click.exceptions.Exit, click.Abort, BrokenPipeError):
                raise  # the last: who reads our output has read enough
            except Exception as error:
                if faults.is_shown():
                    raise
                raise _told(error) from None


def _told(error: Exception) -> Mistake:
    """One line for whatever went wrong."""
    if isinstance(error, InputError):
        return Mistake(str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return Mistake(f"can't use {error.filename} ({error.strerror}): mend that, or name another place")
    if disk_is_full(error):
        said = getattr(error, "strerror", None) or first_line(error)
        return Mistake(f"can't write any more ({said}): make room, the same command goes on where it stopped")
    if ran_out(error):
        return Mistake(
            f"out of memory ({first_line(error)}): use a machine with more, a smaller model, shorter sequences, or "
            "--quantization nf4; the same command goes on where it stopped"
        )
    return Fault(faults.in_one_line(error))


@click.group(
    cls=Subcommands,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
    How many layers can a language model lose, and what is lost with them?

    \b
    deeper-layers plan embedded
    deeper-layers sweep embedded --tasks capitals --sizes 0-4 --limit 20
    deeper-layers prune embedded pruned --drop 4

    What is measured is kept in results/: the same command again is instant, and an interrupted one goes on where
    it stopped. A table goes to stdout, or JSON with --json; progress to stderr.

    Exit status: 0 done; 1 a value, file or model can't be used, which one line on stderr says; 2 a command that is not
    written right; 70 a fault of this software, whose traceback is in a file that one line names
    (DEEPER_LAYERS_TRACEBACK=1 shows it); 130 interrupted.

    \b
    Completion of commands and options, in bash (or zsh_source, fish_source):
    eval "$(_DEEPER_LAYERS_COMPLETE=bash_source deeper-layers)"
    """,
)
@click.version_option(package_name="deeper-layers")
def main() -> None:
    pass
