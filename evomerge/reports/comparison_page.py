"""The HTML page of a comparison of searchers: one file that needs no network, in the style of a run's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from evomerge.reports.comparison import Group, SearcherComparison
from evomerge.reports.comparison_plots import curves_figure, surfaces_figure
from evomerge.reports.comparison_table import (
    checkpoint_headings,
    formatter,
    items_text,
    pair_texts,
    reading,
    seeds_text,
    spread_texts,
    title,
    trials_text,
)
from evomerge.reports.html import Figures, environment_of, write_page


def write_comparison(comparison: SearcherComparison, path: Path) -> Path:
    """Write the page to ``path`` in one step (a reader never sees half a file) and return it."""
    return write_page(render_comparison(comparison), path)


def render_comparison(comparison: SearcherComparison) -> str:
    """Return the comparison as one HTML page, about 5 MB, most of it the plotting library."""
    folder = Path(__file__).parent
    environment = environment_of(folder)
    figures = Figures()
    has_surfaces = all(group.surface for group in comparison.groups)
    return environment.get_template("comparison.html.j2").render(
        comparison=comparison,
        title=title(comparison),
        headings=checkpoint_headings(comparison),
        rows=[_row(comparison, group) for group in comparison.groups],
        has_confirmed=any(group.confirmed for group in comparison.groups),
        reading=reading(comparison),
        curves=figures.add("curves", curves_figure(comparison)),
        surfaces=figures.add("surfaces", surfaces_figure(comparison)) if has_surfaces else None,
        figure=figures.place,
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),
        script=Markup((folder / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )


def _row(comparison: SearcherComparison, group: Group) -> dict[str, Any]:
    shown = formatter(comparison)
    return {
        "label": group.label,
        "seeds": seeds_text(group),
        "best": group is comparison.groups[0],
        "trials": trials_text(group),
        "items": items_text(group),
        "at": [spread_texts(at, shown) for at in group.at],
        "confirmed": spread_texts(group.confirmed, shown),
        "test": pair_texts(comparison.against_best(group)),
        "runs": [
            {
                "folder": run.folder,
                "seed": run.seed,
                "trials": run.trials,
                "items": f"{run.items:,}",
                "end": shown(run.values[-1]),
                "confirmed": "–" if run.confirmed is None else shown(run.confirmed),
            }
            for run in group.runs
        ],
    }
