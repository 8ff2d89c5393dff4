"""``evomerge report``: the HTML report."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it. [default: RUN/report.html]")
def command(run: Path, out: Path | None) -> None:
    """Write the report of RUN, finished or not: one HTML file that needs no network."""
    from evomerge.experiments.run_folder import RunFolder
    from evomerge.experiments.summarise import summarise
    from evomerge.reports.html import write_report

    path = out or RunFolder(run).report
    write_report(summarise(run), path)
    click.echo(str(path))
