"""``evomerge methods``: the table of merge methods."""

from __future__ import annotations

import click


@click.command()
def command() -> None:
    """List the merge methods: paper, genes and what each needs."""
    from rich.console import Console

    from evomerge.merging import METHODS
    from evomerge.reports import methods_table

    Console().print(methods_table([method for _, method in METHODS.items()]))
