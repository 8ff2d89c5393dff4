"""``evomerge zoo``: the small families of models."""

from __future__ import annotations

import click


@click.group()
def command() -> None:
    """The small families of models that examples and tests search over."""


@command.command()
@click.argument("family", type=click.Choice(["language", "digits"]), default="language")
@click.option("--force", is_flag=True, help="Build again even if it is there.")
@click.option(
    "--pool", is_flag=True, help="Also train checkpoints of the experts and LoRA adapters, for merges of many."
)
def build(family: str, force: bool, pool: bool) -> None:
    """Build a FAMILY of models and cache it.

    language (the default): a base and its experts, trained in about two minutes on two cores. digits: small networks
    for handwritten digits, random and half trained, in seconds.
    """
    from rich.console import Console

    if family == "digits":
        from evomerge.zoo import digits

        folder = digits.build_digits(force=force)
        Console().print(digits.digits_table())
    else:
        from evomerge import zoo

        folder = zoo.build(force=force)
        Console().print(zoo.score_table())
        if pool:
            zoo.build_pool()
    click.echo(str(folder))
