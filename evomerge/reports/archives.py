"""What reports show of archives: their grids as heat maps, how much of them is filled, and how well."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping

import plotly.graph_objects as go

from evomerge.reports import wording
from evomerge.searchers.grids import Axis, Cell, Elite, GridArchive

MOST_LABELS = 225  # cells beyond which trials are not written into them


def figures(archives: Mapping[str, GridArchive]) -> list[tuple[go.Figure, str]]:
    """Return a heat map for each archive and pair of its axes, with its caption."""
    found = []
    for name, archive in archives.items():
        if archive.elites:
            pairs = list(itertools.combinations(range(len(archive.axes)), 2)) or [(0, 0)]
            found += [(heat_map(archive, *pair), caption(name, archive, *pair)) for pair in pairs]
    return found


def caption(name: str, archive: GridArchive, x: int, y: int) -> str:
    """Return what a heat map is of, how much of the archive is filled, and its best elite."""
    along = " × ".join(archive.axes[index].objective.name for index in dict.fromkeys((x, y)))
    best = archive.best
    told = "" if best is None else f", best {wording.number(best.quality)} (trial {best.name})"
    return (
        f"{name} over {along}: {len(archive.elites)} of {archive.cells} niches filled "
        f"({wording.share(archive.coverage)}), QD score {wording.number(archive.qd_score)}{told}"
    )


def heat_map(archive: GridArchive, x: int, y: int) -> go.Figure:
    """Return the qualities of the elites along two axes, of several in one place the best; one row if x is y."""
    columns, rows = archive.axes[x], archive.axes[y]
    best: dict[Cell, Elite] = {}
    for cell, elite in archive.elites.items():
        place = (cell[x], 0 if x == y else cell[y])
        if place not in best or elite.quality > best[place].quality:
            best[place] = elite
    places = [[best.get((column, row)) for column in range(columns.bins)] for row in range(1 if x == y else rows.bins)]
    labelled = len(places) * columns.bins <= MOST_LABELS
    figure = go.Figure(
        go.Heatmap(
            z=[[None if elite is None else elite.quality for elite in row] for row in places],
            customdata=[["" if elite is None else f"trial {elite.name}" for elite in row] for row in places],
            text=[["" if elite is None else str(elite.name) for elite in row] for row in places],
            texttemplate="%{text}" if labelled else None,
            x=_labels(columns), y=[""] if x == y else _labels(rows), xgap=1, ygap=1, colorscale="Viridis",
            colorbar={"thickness": 10}, hoverongaps=False,
            hovertemplate="%{customdata}: %{z:.4g}<br>%{x}, %{y}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title=html.escape(columns.objective.name), showgrid=False, type="category")
    figure.update_yaxes(title="" if x == y else html.escape(rows.objective.name), showgrid=False, type="category")
    return figure.update_layout(height=180 if x == y else 400)


def _labels(axis: Axis) -> list[str]:
    """Return each niche's ends, the worst niche first."""
    width = (axis.high - axis.low) / axis.bins
    digits = max(0, 1 - math.floor(math.log10(width)))
    ends = [round(axis.low + number * width, digits) for number in range(axis.bins + 1)]
    labels = [f"{low:g}–{high:g}" for low, high in itertools.pairwise(ends)]
    return labels if axis.objective.direction == "maximize" else labels[::-1]
