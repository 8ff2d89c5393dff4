"""``evomerge methods``: the table of merge methods."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the page docs/methods.md.")
def command(name: str | None, markdown: bool) -> None:
    """List the merge methods: paper, genes and what each needs; or tell all about the method NAME."""
    from rich.console import Console
    from rich.markdown import Markdown

    from evomerge.merging import METHODS
    from evomerge.reports.methods_page import method_section, methods_page
    from evomerge.reports.tables import methods_table

    if markdown:
        click.echo(methods_page(METHODS), nl=False)
        return
    if name is not None:
        Console().print(Markdown(method_section(name, METHODS[name])))
        return
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
