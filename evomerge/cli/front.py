"""``evomerge front``: the non-dominated trials, and the recipe that suits a preference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from evomerge.experiments.amortized import Answer


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--prefer",
    metavar="NAME=WEIGHT,…",
    help="Print the recipe that suits these weights of the objectives best (1 where left out), from what is known: a "
    "trial, or a point of the front that fitted surrogates predict (searcher: map).",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="A list of {trial, genome, objectives, confirmed, recipe}, and standard_errors of estimates; predicted "
    "is true of confirmed points of the predicted front; with --prefer, one object.",
)
def command(run: Path, prefer: str | None, as_json: bool) -> None:
    """Print the non-dominated trials of RUN so far, and those points of a predicted front that it confirmed."""
    from evomerge.experiments.front_file import label_of, read_front, recipe_of
    from evomerge.experiments.run_folder import RunFolder
    from evomerge.experiments.summarise_stages import check_last_began

    if prefer is not None:
        _print_preferred(run, prefer, as_json)
        return
    if as_json:
        check_last_began(RunFolder(run))
        RunFolder(run).read_experiment()
        click.echo(json.dumps(read_front(RunFolder(run).front), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from evomerge.experiments.summarise import summarise
    from evomerge.reports import surrogates
    from evomerge.reports.tables import front_table, path_lines, predictions_table

    summary = summarise(run)
    if not summary.front:
        click.echo("no trial is finished yet")
        return
    table = front_table(summary.front, summary.objectives, pick=summary.pick, confirmed=summary.confirmed)
    recipes = {label_of(entry): recipe_of(entry) for entry in read_front(RunFolder(run).front)}
    Console().print(table)
    if summary.predictions:
        Console().print(predictions_table(summary.predictions, summary.objectives, summary.pick))
    Console().print(*path_lines(recipes, summary.names))
    if summary.surrogates:
        click.echo("Surrogates")
        for line in surrogates.lines(summary.surrogates, len(summary.complete), str(run)):
            click.echo(f"  {line}")


def _print_preferred(run: Path, prefer: str, as_json: bool) -> None:
    """Print the recipe for a preference as YAML that `evomerge merge` takes, what is known of it as comments."""
    from dataclasses import asdict

    from evomerge.experiments.amortized import answer, read_amortized
    from evomerge.experiments.front_file import read_front, recipe_of
    from evomerge.experiments.journal import Journal
    from evomerge.experiments.preferences import read_preference
    from evomerge.experiments.run_folder import RunFolder
    from evomerge.experiments.staging import whole
    from evomerge.experiments.summarise_stages import check_last_began
    from evomerge.recipes import write_recipes

    folder = RunFolder(run)
    check_last_began(folder)
    objectives = Journal.read(folder.journal).objectives
    weights = read_preference(prefer, objectives)
    chosen, evaluated = answer(read_front(folder.front), read_amortized(folder.amortized), weights, objectives)
    if as_json:
        found = asdict(chosen) | {"weights": weights, "best_evaluated": asdict(evaluated) if evaluated else None}
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    click.echo("# preference: " + ", ".join(f"{name} {weight:g}" for name, weight in weights.items()))
    click.echo(_told(chosen))
    if evaluated is not None:
        click.echo(_told(evaluated).replace("# ", "# the best of those evaluated is ", 1))
    stages = whole(recipe_of({"recipe": chosen.recipe}), folder.read_written(), run)
    click.echo(write_recipes(stages), nl=False)


def _told(answer: Answer) -> str:
    from evomerge.reports import wording

    lines = []
    predicted = answer.evaluated is None
    lines.append(f"# {answer.label}, {answer.basis if answer.trial is not None else 'never evaluated'}:")
    for name, value in answer.objectives.items():
        parts = [wording.number(value)]
        if name in answer.standard_errors:
            parts[0] += f" ± {wording.number(1.96 * answer.standard_errors[name])}"
        if predicted and answer.trial is not None:
            parts[0] += " predicted"
        if answer.evaluated is not None and answer.standard_errors:
            parts[0] += " by the surrogate"
            parts.append(f"{wording.number(answer.evaluated[name])} in the search")
        if answer.confirmed is not None:
            parts.append(f"{wording.number(answer.confirmed[name]['value'])} on items that the search never saw")
        lines.append(f"#   {name} " + ", ".join(parts))
    return "\n".join(lines)
