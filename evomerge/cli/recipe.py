"""``evomerge recipe``: print a recipe, for mergekit if asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from evomerge.recipes import NamedRecipe


@click.command()
@click.argument("source", metavar="RECIPE|RUN")
@click.option("--for", "program", type=click.Choice(["mergekit"]), help="Write it for this program.")
@click.option("--trial", type=click.IntRange(min=0), metavar="N", help="Of a RUN: trial N instead of the pick.")
def command(source: str, program: str | None, trial: int | None) -> None:
    """Print a recipe as YAML: of a file, a shipped name, a merged model's folder or the winner of a RUN.

    With `--for mergekit` it means the same to mergekit; what mergekit cannot do is refused. Models of the zoo become
    folders of this machine.
    """
    from evomerge.recipes import stages_to_mergekit, write_recipes

    stages, folders = _read(source, trial)
    click.echo(stages_to_mergekit(stages, folders) if program == "mergekit" else write_recipes(stages), nl=False)


def _read(source: str, trial: int | None) -> tuple[tuple[NamedRecipe, ...], dict[str, str]]:
    """Return the recipe, and the folders of those of its models that only we find by their names."""
    from evomerge.checkpoints import resolve
    from evomerge.recipes import NamedRecipe, read_recipes

    path = Path(source)
    if path.is_dir() and (trial is not None or not (path / "recipe.yaml").is_file()):
        from evomerge.experiments.export_run import choose, describe
        from evomerge.export.card import hub_origin

        prepared, recipe, card = describe(path, choose(path, trial=trial, pick=None))
        found = {reference: one.folder for reference, one in prepared.parents.checkpoints.items()}
        stages = card.stages or (NamedRecipe(recipe),)
        return stages, {ref: str(folder) for ref, folder in found.items() if not hub_origin(folder)}
    stages = read_recipes(path / "recipe.yaml" if path.is_dir() else source)
    zoo = {ref for stage in stages for ref in stage.recipe.parents() if ref.startswith("zoo/")}
    return stages, {reference: str(resolve(reference)) for reference in zoo}
