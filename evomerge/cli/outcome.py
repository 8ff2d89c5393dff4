"""What ``run`` and ``resume`` print at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from evomerge.experiments.run import Ended


@contextmanager
def resumable(path: Path) -> Iterator[None]:
    """Say how to go on when the user stops the run at once."""
    try:
        yield
    except KeyboardInterrupt:
        if (path / "experiment.yaml").exists():
            click.echo(f"\nstopped; go on with: evomerge resume {path}")
        raise


def known_loggers(names: Sequence[str]) -> list[str]:
    """Return the names of loggers that a user gave.

    Raises:
        UnknownNameError: there is no such logger.
    """
    from evomerge.loggers import LOGGERS

    for name in names:
        LOGGERS[name]
    return list(names)


def conclude(ended: Ended) -> None:
    """Write the report and print the table of a finished run; tell how to resume an interrupted one."""
    from rich.console import Console

    from evomerge.cli import INTERRUPTED
    from evomerge.experiments.summarise import summarise
    from evomerge.experiments.write_reports import write_reports
    from evomerge.reports.tables import confirmation_table

    path = ended.folder.path
    if not ended.finished:
        click.echo(f"stopped after {ended.trials} of {ended.budget} trials; go on with: evomerge resume {path}")
        sys.exit(INTERRUPTED)
    write_reports(path)
    summary = summarise(path)
    Console().print(confirmation_table(summary))
    for flag in summary.flags:
        click.secho(f"flag: {flag}", fg="yellow")
    click.echo(f"report: {ended.folder.report}\nexport: evomerge export {path} {ended.folder.model}")
