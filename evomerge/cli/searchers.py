"""``evomerge searchers``: the table of searchers."""

from __future__ import annotations

import click


@click.command()
def command() -> None:
    """List the searchers and what each is for."""
    from rich.console import Console

    from evomerge.reports.tables import searchers_table
    from evomerge.searchers import SEARCHERS

    rows = [
        {
            "name": name,
            "summary": entry.summary,
            "objectives": "a front" if entry.multi_objective else "weighted sum",
            "paper": entry.paper,
        }
        for name, entry in SEARCHERS.items()
    ]
    Console().print(searchers_table(rows))
