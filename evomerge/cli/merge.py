"""``evomerge merge``: one recipe, no search."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("recipe")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--max-shard-size", default="5GB", show_default=True, help="Largest size of one safetensors file.")
def command(recipe: str, out: Path, max_shard_size: str) -> None:
    """Merge the models of RECIPE (a mergekit-compatible file, or a shipped name) into the folder OUT.

    Tensors are streamed: memory does not grow with the model.
    """
    from evomerge.errors import ConfigError
    from evomerge.export.card import describe
    from evomerge.export.folder import write_model
    from evomerge.merging import Parents, check_recipe
    from evomerge.recipes import read_recipe

    read = read_recipe(recipe)
    parents = Parents.open(read.parents())
    if problems := check_recipe(read, parents):
        raise ConfigError(problems)
    folders = {reference: checkpoint.folder for reference, checkpoint in parents.checkpoints.items()}
    card = describe(read, out.name, folders=folders)
    click.echo(str(write_model(read, out, card=card, parents=parents, max_shard_size=max_shard_size)))
