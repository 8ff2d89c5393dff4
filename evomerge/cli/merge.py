"""``evomerge merge``: one recipe, no search."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from evomerge.recipes import NamedRecipe


SECONDS = 5.0  # between two lines of progress


@click.command()
@click.argument("recipe")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--max-shard-size", default="5GB", show_default=True, help="Largest size of one safetensors file.")
@click.option(
    "--keep-intermediates",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Of a RECIPE of several stages: keep each named stage in FOLDER, and use what is there already.",
)
@click.option(
    "--allow-pickle",
    multiple=True,
    metavar="MODEL",
    help="Read pickled weights (.bin) of this model of RECIPE, if it has no safetensors. May be given several times.",
)
def command(
    recipe: str, out: Path, max_shard_size: str, keep_intermediates: Path | None, allow_pickle: tuple[str, ...]
) -> None:
    """Merge the models of RECIPE (a mergekit-compatible file, or a shipped name) into the folder OUT.

    Tensors are streamed: memory does not grow with the model. OUT appears when it is complete. After an interruption, a
    kill or a full disk the same command goes on with the tensors that are missing; of several stages, those that are
    complete are not done again.
    """
    from evomerge.errors import ConfigError
    from evomerge.export.card import describe, folders_of
    from evomerge.export.folder import write_model
    from evomerge.merging import Parents, check_recipe
    from evomerge.merging.optional import notes
    from evomerge.recipes import read_recipes

    stages = read_recipes(recipe)
    _check_allowed(allow_pickle, stages)
    if len(stages) > 1:
        click.echo(str(_merge_stages(stages, out, max_shard_size, keep_intermediates, allow_pickle)))
        return
    read = stages[0].recipe
    parents = Parents.open(read.parents(), allow_pickle=allow_pickle)
    if problems := check_recipe(read, parents):
        raise ConfigError(problems)
    for note in notes(read, parents):
        click.echo(f"note: {note}", err=True)
    folders = folders_of(parents.checkpoints)
    card = describe(read, out.name, folders=folders)
    click.echo(
        str(write_model(read, out, card=card, parents=parents, max_shard_size=max_shard_size, report=_reporter()))
    )


def _reporter() -> Callable[[int, int], None]:
    """Return what tells on standard error, every few seconds, how far a merge is."""
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            click.echo(f"merged {done / 1e9:.1f} of {total / 1e9:.1f} GB", err=True)

    return report


def _check_allowed(allowed: tuple[str, ...], stages: tuple[NamedRecipe, ...]) -> None:
    """Refuse a name of --allow-pickle that no recipe has, which would silently allow nothing."""
    from evomerge.errors import ConfigError, Problem, suggest

    parents = {reference for stage in stages for reference in stage.recipe.parents()}
    names = parents | {part for reference in parents for part in reference.split("+")}
    unknown = [name for name in allowed if name not in names]
    if unknown:
        raise ConfigError(
            [Problem(f"the recipe has no model {name!r}", "--allow-pickle", suggest(name, names)) for name in unknown]
        )


def _merge_stages(
    stages: tuple[NamedRecipe, ...], out: Path, max_shard_size: str, keep: Path | None, allow_pickle: tuple[str, ...]
) -> Path:
    from evomerge.export.card import describe, folders_of
    from evomerge.export.folder import write_model
    from evomerge.merging import Parents, merge_to_folder
    from evomerge.merging.stages import merge_stages, models_of
    from evomerge.recipes import Recipe

    def merge(recipe: Recipe, folder: Path, parents: Parents) -> Path:
        return merge_to_folder(recipe, folder, max_shard_size=max_shard_size, parents=parents, report=_reporter())

    def merge_result(recipe: Recipe, folder: Path, parents: Parents) -> Path:
        opened = Parents.open(models_of(stages), allow_pickle=allow_pickle).checkpoints
        folders = folders_of(opened)
        card = replace(describe(recipe, out.name, folders=folders), stages=stages)
        return write_model(
            recipe, folder, card=card, parents=parents, max_shard_size=max_shard_size, report=_reporter()
        )

    return merge_stages(
        stages,
        out,
        intermediates=keep,
        allow_pickle=allow_pickle,
        merge=merge,
        merge_result=merge_result,
        tell=lambda line: click.echo(line, err=True),
    )
