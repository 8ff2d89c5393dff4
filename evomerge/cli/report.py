"""``evomerge report``: the HTML report."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it. [default: RUN/report.html]")
def command(run: Path, out: Path | None) -> None:
    """Write the report of RUN, finished or not: one HTML file that needs no network.

    Of a run that merges up a tree, the report of each merge is written in the merge's own folder, and linked.
    """
    from evomerge.experiments.write_reports import write_reports

    for path in write_reports(run, out):
        click.echo(str(path))
