"""``evomerge compare``: which searcher does better, over several runs of each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from evomerge.experiments.compared_runs import By
    from evomerge.reports.comparison import Cost


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…", type=click.Path(path_type=Path))
@click.option(
    "--by",
    type=click.Choice(["searcher", "name", "folder"]),
    default="searcher",
    show_default=True,
    help="Runs with the same one are repetitions: the searcher's options without its seed, the experiment's name, "
    "or the folder that RUN is in.",
)
@click.option(
    "--cost",
    type=click.Choice(["trials", "items"]),
    default="trials",
    show_default=True,
    help="What counts: trials, or item evaluations, of which estimated runs need fewer a trial.",
)
@click.option("--paired", is_flag=True, help="Compare runs of equal seeds (Wilcoxon), not all with all (Mann-Whitney).")
@click.option("--out", type=click.Path(path_type=Path), help="Also write an HTML page, with plots, there.")
@click.option("--json", "as_json", is_flag=True, help="Print all numbers instead: curves, fronts, quartiles, tests.")
def command(runs: tuple[Path, ...], by: By, cost: Cost, paired: bool, out: Path | None, as_json: bool) -> None:
    """Compare searchers over their runs, finished or not: several of each, with different seeds."""
    from rich.console import Console

    from evomerge.experiments.compare import compare
    from evomerge.reports.comparison_table import comparison_table

    found = compare(runs, by=by, cost=cost, paired=paired)
    if out is not None:
        from evomerge.reports.comparison_page import write_comparison

        write_comparison(found, out)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
        return
    Console().print(comparison_table(found))
    if out is not None:
        click.echo(str(out))
