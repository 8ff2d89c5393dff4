"""``evomerge methods``: the table of merge methods."""

from __future__ import annotations

import click


@click.command()
def command() -> None:
    """List the merge methods: paper, genes and what each needs."""
    from rich.console import Console

    from evomerge.merging import METHODS
    from evomerge.reports.tables import methods_table

    rows = [
        {
            "name": name,
            "summary": method.summary,
            "genes": ", ".join(p.name for p in method.parameters if p.searchable),
            "base": "needed" if method.needs_base else "",
            "paper": method.paper,
        }
        for name, method in METHODS.items()
    ]
    Console().print(methods_table(rows))
