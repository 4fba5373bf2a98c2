"""The list of subcommands, each imported when it is asked for, and what becomes of a user's mistake or Ctrl-C."""

import importlib

import click

from deeper_layers.errors import InputError

INTERRUPTED = 130  # what a shell says of a process that SIGINT ended
# each is the function of its name in the file of its name; imported to run it, but not to list it
SUBCOMMANDS = {
    "plan": "What a run will cost; nothing is loaded.",
    "distances": "Which layers are alike: every angular distance.",
    "sweep": "Score the pruned models on tasks of lm-eval.",
    "prune": "Write a checkpoint without some of its layers.",
    "heal": "Fine-tune a pruned model, keep the adapters, score it.",
    "report": "Run every notebook for a model, then build the site.",
}


class Mistake(click.ClickException):
    """One line on stderr, exit status 1."""

    def show(self, file=None) -> None:
        click.echo(f"error: {self.message}", file=file, err=True)


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

    def shell_complete(self, context: click.Context, incomplete: str) -> list:
        found = [(name, help) for name, help in SUBCOMMANDS.items() if name.startswith(incomplete)]
        items = [click.shell_completion.CompletionItem(name, help=help) for name, help in found]
        return items + click.Command.shell_complete(self, context, incomplete)

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except InputError as error:
            raise Mistake(str(error)) from None
        except OSError as error:
            if error.filename is None:  # no place of the user's: a fault, to be seen whole
                raise
            raise Mistake(f"can't use {error.filename} ({error.strerror}): mend that, or name another place") from None
        except KeyboardInterrupt:
            click.echo("\ninterrupted: the same command goes on where it stopped", err=True)
            context.exit(INTERRUPTED)


@click.group(cls=Subcommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deeper-layers")
def main() -> None:
    """How many layers can a language model lose, and what is lost with them?

    \b
    deeper-layers plan embedded
    deeper-layers sweep embedded --tasks capitals --sizes 0-4 --limit 20
    deeper-layers prune embedded pruned --drop 4

    What is measured is kept in results/: the same command again is instant, and an interrupted one goes on where
    it stopped. A table goes to stdout, or JSON with --json; progress to stderr.

    \b
    Completion of commands and options, in bash (or zsh_source, fish_source):
    eval "$(_DEEPER_LAYERS_COMPLETE=bash_source deeper-layers)"
    """
