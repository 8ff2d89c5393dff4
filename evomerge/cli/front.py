"""``evomerge front``: the non-dominated trials."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="A list of {trial, genome, objectives, confirmed, recipe}, and standard_errors of estimates.",
)
def command(run: Path, as_json: bool) -> None:
    """Print the non-dominated trials of RUN, as far as it has come."""
    from evomerge.experiments.front_file import read_front, recipe_of
    from evomerge.experiments.run_folder import RunFolder

    if as_json:
        RunFolder(run).read_experiment()
        click.echo(json.dumps(read_front(RunFolder(run).front), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from evomerge.experiments.summarise import summarise
    from evomerge.reports.tables import front_table, path_lines

    summary = summarise(run)
    if not summary.front:
        click.echo("no trial is finished yet")
        return
    table = front_table(summary.front, summary.objectives, pick=summary.pick, confirmed=summary.confirmed)
    recipes = {entry["trial"]: recipe_of(entry) for entry in read_front(RunFolder(run).front)}
    Console().print(table, *path_lines(recipes, summary.names))
