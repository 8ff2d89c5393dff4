"""``evomerge zoo``: the small family of models."""

from __future__ import annotations

import click


@click.group()
def command() -> None:
    """The small family of models that examples and tests search over."""


@command.command()
@click.option("--force", is_flag=True, help="Build again even if it is there.")
@click.option(
    "--pool", is_flag=True, help="Also train checkpoints of the experts and LoRA adapters, for merges of many."
)
def build(force: bool, pool: bool) -> None:
    """Train the base and its experts (about two minutes on two cores) and cache them."""
    from rich.console import Console

    from evomerge import zoo

    folder = zoo.build(force=force)
    Console().print(zoo.score_table())
    if pool:
        zoo.build_pool()
    click.echo(str(folder))
