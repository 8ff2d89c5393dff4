"""The command line. Each command is a module of its own, imported when it is called, so that ``--help`` is quick.

Exit codes: 0 done; 1 the work failed; 2 the input cannot be used; 130 interrupted, and can be resumed.
"""

from __future__ import annotations

import importlib
import io
import sys

import click

from evomerge import __version__
from evomerge.errors import ConfigError, EvomergeError, UnknownNameError
from evomerge.redaction import redact, redact_traceback

FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130

# command → (module in evomerge.cli, one line of help); the module holds a click command named `command`.
COMMANDS = {
    "run": ("run", "Launch a search experiment."),
    "plan": ("plan", "Say what a run would take, and why it would be refused."),
    "resume": ("resume", "Go on with a run exactly where it stopped."),
    "status": ("status", "Say where a run stands."),
    "front": ("front", "Print the non-dominated trials of a run."),
    "report": ("report", "Write a run's report.html."),
    "compare": ("compare", "Compare searchers over several runs of each."),
    "export": ("export", "Write the winner as a model folder, and push it to the Hub."),
    "merge": ("merge", "Carry out one recipe, without a search."),
    "recipe": ("recipe", "Print a recipe, for mergekit if asked."),
    "kinship": ("kinship", "Say how alike models are: similarities of their task vectors."),
    "statistics": ("statistics", "Gather what data-aware merge methods need, from a small calibration set."),
    "calibrate": ("calibrate", "Learn a task's items from the responses of many models: an item bank."),
    "zoo": ("zoo", "Build the small models that the examples search over."),
    "methods": ("methods", "List the merge methods."),
    "searchers": ("searchers", "List the searchers."),
    "ls": ("library", "List the shipped experiments, recipes, search spaces and tasks."),
    "cat": ("library", "Print a shipped file."),
    "cp": ("library", "Copy a shipped file, to edit it."),
    "validate": ("validate", "Check an experiment, recipe or search space without running it."),
}


class _Lazy(click.Group):
    """A group that imports a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"evomerge.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, "COMMANDS", {}).get(name) or module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UnknownNameError("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="evomerge")
def cli() -> None:
    """Evolutionary search for language-model merges.

    Launch a search (`evomerge run quickstart`), resume it (`evomerge resume RUN`), export the winner
    (`evomerge export RUN OUT`).
    """


def main() -> None:
    """Run the command line; errors of ours become one message and an exit code, never a traceback."""
    sys.excepthook = redact_traceback
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(redact(shown.getvalue()), nl=False, err=True)
        sys.exit(UNUSABLE)
    except (ConfigError, UnknownNameError) as error:
        _complain(error)
        sys.exit(UNUSABLE)
    except EvomergeError as error:
        _complain(error)
        sys.exit(FAILED)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        click.secho(redact(f"error: {place}{error.strerror or error}"), fg="red", err=True)
        sys.exit(FAILED)
    except (KeyboardInterrupt, click.Abort):
        click.secho("\nstopped", fg="yellow", err=True)
        sys.exit(INTERRUPTED)


def _complain(error: EvomergeError) -> None:
    problems = getattr(error, "problems", ())
    head = f"{len(problems)} problems:\n" if len(problems) > 1 else ""
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(redact(head + str(error)), err=True)
