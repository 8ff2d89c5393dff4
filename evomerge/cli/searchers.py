"""``evomerge searchers``: the table of searchers."""

from __future__ import annotations

import click


@click.command()
def command() -> None:
    """List the searchers and what each is for."""
    from rich.console import Console

    from evomerge.reports import searchers_table
    from evomerge.searchers import SEARCHERS

    Console().print(searchers_table(SEARCHERS.snapshot()))
