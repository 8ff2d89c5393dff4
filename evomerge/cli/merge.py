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
    from evomerge.export import merge_model

    click.echo(str(merge_model(recipe, out, max_shard_size=max_shard_size)))
