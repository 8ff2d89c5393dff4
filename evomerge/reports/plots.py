"""The report's figures over trials and over genes, as plotly figures without a theme (``html.py`` sets it).

Colours carry meaning and are the same in every figure: trials blue, the winner red, parents orange, the base
grey, the uniform merge green.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from evomerge.reports import wording
from evomerge.reports.importance import DepthTable, GeneImportance
from evomerge.reports.summary import ObjectiveInfo, RunSummary

COLOURS = {
    "trial": "#8fb3e8",
    "front": "#2f6fd6",
    "winner": "#e0364f",
    "parent": "#ec8a2c",
    "base": "#8a8f98",
    "uniform": "#2aa876",
    "volume": "#7c5cd6",
}
MANY_POINTS = 2000  # above this, SVG scatter plots become slow in a browser
TOP_GENES = 20
_NEUTRAL, _BETTER, _WORSE = (178, 184, 194), (47, 111, 214), (200, 85, 61)
_SHARES = [[0, "rgba(47,111,214,0.04)"], [1, "rgba(47,111,214,1)"]]


def padded(values: Sequence[float], part: float) -> tuple[float, float]:
    """Return the range of the finite ``values``, widened on both sides by ``part`` of its width."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    width = (max(finite) - min(finite)) or abs(max(finite)) or 1.0
    return min(finite) - part * width, max(finite) + part * width


def progress_figure(summary: RunSummary, objective: ObjectiveInfo) -> go.Figure:
    """Return one objective over trials: each trial, the best so far, and the references' levels."""
    x = [trial.number for trial in summary.complete]
    y = [(trial.objectives or {})[objective.name] for trial in summary.complete]
    best = list(itertools.accumulate(y, max if objective.sign > 0 else min))
    dots = go.Scattergl if len(x) > MANY_POINTS else go.Scatter
    figure = go.Figure(
        [
            dots(x=x, y=y, mode="markers", name="trial", marker={"size": 5, "color": COLOURS["trial"]},
                 hovertemplate="trial %{x}: %{y:.4g}<extra></extra>"),
            go.Scatter(x=x, y=best, mode="lines", name="best so far", line=_steps("front"),
                       hovertemplate="best up to trial %{x}: %{y:.4g}<extra></extra>"),
            *_levels(summary, objective),
        ]
    )  # fmt: skip
    figure.update_xaxes(title="trial")
    return figure


def _levels(summary: RunSummary, objective: ObjectiveInfo) -> Iterator[go.Scatter]:
    parent = summary.best_parent(objective)
    levels = [(f"best parent ({parent.name})", "parent", parent)] if parent else []
    levels += [("base", "base", row) for row in summary.references if row.kind == "base"]
    levels += [("uniform merge", "uniform", row) for row in summary.references if row.kind == "uniform"]
    last = summary.trials[-1].number if summary.trials else 1
    for label, colour, row in levels:
        value = row.objectives.get(objective.name)
        if value is not None:
            line = {"dash": "dash", "width": 1.5, "color": COLOURS[colour]}
            name = html.escape(label)
            hover = f"{name}: {wording.number(value)}<extra></extra>"
            yield go.Scatter(
                x=[0, last], y=[value, value], mode="lines", name=name, line=line, hovertemplate=hover
            )  # fmt: skip


def hypervolume_figure(summary: RunSummary) -> go.Figure:
    """Return the hypervolume after each trial."""
    return _measure_figure("hypervolume", summary.hypervolume)


def igd_plus_figure(summary: RunSummary) -> go.Figure:
    """Return the distance of the front from a known one after each trial."""
    return _measure_figure("IGD+", summary.igd_plus)


def _measure_figure(name: str, measured: Sequence[tuple[int, float]]) -> go.Figure:
    values = [value for _, value in measured]
    figure = go.Figure(
        go.Scatter(
            x=[trial for trial, _ in measured], y=values, mode="lines", name=name,
            line=_steps("volume"), hovertemplate="after trial %{x}: %{y:.4g}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title="trial")
    figure.update_yaxes(range=list(padded(values, 0.05)))
    return figure


def _steps(colour: str) -> dict[str, Any]:
    return {"shape": "hv", "width": 2.5, "color": COLOURS[colour]}


def importance_figure(genes: Sequence[GeneImportance]) -> go.Figure:
    """Return bars of the most important genes, coloured by how more of the gene goes with better scores."""
    top = list(genes[:TOP_GENES])
    trends = ["" if gene.trend is None else f", rank correlation {gene.trend:+.2f}" for gene in top]
    figure = go.Figure(
        go.Bar(
            x=[gene.share for gene in top], y=[html.escape(gene.gene) for gene in top], orientation="h",
            text=[wording.share(gene.share) for gene in top], textposition="outside", cliponaxis=False,
            customdata=trends, hovertemplate="%{y}: %{text}%{customdata}<extra></extra>",
            marker={"color": [_trend_colour(gene.trend) for gene in top]},
        )
    )  # fmt: skip
    widest = max((gene.share for gene in top), default=1.0) or 1.0
    figure.update_xaxes(title="share of explained variance", tickformat=".0%", range=[0, widest * 1.12])
    return _rows(figure, len(top))


def _trend_colour(trend: float | None) -> str:
    """Return grey for no trend, blue for upwards, red for downwards; faint trends are lifted to be seen."""
    strength = math.sqrt(abs(trend)) if trend is not None and math.isfinite(trend) else 0.0
    end = _BETTER if (trend or 0) > 0 else _WORSE
    return "rgb({},{},{})".format(*(round(a + (b - a) * strength) for a, b in zip(_NEUTRAL, end, strict=True)))


def genome_figure(values: Mapping[str, float]) -> go.Figure:
    """Return numeric genes as bars."""
    genes = list(values.items())
    figure = go.Figure(
        go.Bar(
            x=[value for _, value in genes], y=[html.escape(name) for name, _ in genes], orientation="h",
            text=[wording.number(value) for _, value in genes], textposition="outside",
            cliponaxis=False, marker={"color": COLOURS["front"]},
            hovertemplate="%{y}: %{x:.6g}<extra></extra>",
        )
    )  # fmt: skip
    return _rows(figure, len(genes))


def depth_figure(table: DepthTable, *, share: bool) -> go.Figure:
    """Return a heat map of gene families over depth: importances (``share``) or a genome's values."""
    cell = "%{z:.2%}" if share else "%{z:.4g}"
    figure = go.Figure(
        go.Heatmap(
            z=[[None if math.isnan(value) else value for value in row] for row in table.values],
            x=list(table.columns), y=[html.escape(row) for row in table.rows],
            xgap=1, ygap=1,
            zmin=0 if share else None, colorscale=_SHARES if share else "Viridis",
            colorbar={"thickness": 10, "tickformat": ".1%" if share else ""},
            hovertemplate=f"%{{y}}, {table.axis} %{{x}}: {cell}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(showgrid=False, type="category", title=table.axis)
    figure.update_yaxes(showgrid=False)
    return _rows(figure, len(table.rows))


def _rows(figure: go.Figure, count: int) -> go.Figure:
    """Give a figure with one named row each for ``count`` things its height, the first at the top."""
    figure.update_yaxes(autorange="reversed", automargin=True, ticks="", tickmode="linear")
    figure.update_layout(height=100 + 24 * count, bargap=0.25)
    return figure
