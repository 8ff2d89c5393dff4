"""The figures of a comparison of searchers, as plotly figures without a theme (``html.py`` sets it)."""

from __future__ import annotations

import html
from collections.abc import Iterator

import plotly.graph_objects as go

from evomerge.reports.comparison import Band, Group, SearcherComparison
from evomerge.reports.plots import padded

# Okabe and Ito's colours, which people who see few colours tell apart too; searchers beyond them start over, dashed.
COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (204, 121, 167), (86, 180, 233))
DASHES = ("solid", "dash", "dot")


def curves_figure(comparison: SearcherComparison) -> go.Figure:
    """Return the value against what was spent: each group's median as a line, the quartiles as a band."""
    figure = go.Figure([trace for i, group in enumerate(comparison.groups) for trace in _curve(group, i)])
    figure.update_xaxes(title=comparison.unit, rangemode="tozero")
    figure.update_yaxes(title=html.escape(comparison.measure))
    figure.update_layout(height=420)
    return figure


def _curve(group: Group, index: int) -> Iterator[go.Scatter]:
    band, name = _drawable(group.band), html.escape(group.label)
    common = {"x": band.spent, "mode": "lines", "legendgroup": group.label}
    if len(group.runs) > 1:
        edge = {"shape": "hv", "width": 0}
        yield go.Scatter(**common, y=band.low, line=edge, hoverinfo="skip", showlegend=False)
        yield go.Scatter(
            **common, y=band.high, line=edge, fill="tonexty", fillcolor=_colour(index, 0.16), hoverinfo="skip",
            showlegend=False,
        )  # fmt: skip
    yield go.Scatter(
        **common, y=band.median, name=name, line={"shape": "hv", **_line(index)},
        customdata=list(zip(band.low, band.high, strict=True)),
        hovertemplate="%{x}: %{y:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g})" + f"<extra>{name}</extra>",
    )  # fmt: skip


def surfaces_figure(comparison: SearcherComparison) -> go.Figure:
    """Return the median attainment surfaces of two objectives, and the fronts that they are made of."""
    first, second = comparison.objectives
    figure = go.Figure([trace for i, group in enumerate(comparison.groups) for trace in _surface(comparison, group, i)])
    points = [point for group in comparison.groups for run in group.runs for point in run.front]
    figure.update_xaxes(title=html.escape(first.title), range=list(padded([x for x, _ in points], 0.08)))
    figure.update_yaxes(title=html.escape(second.title), range=list(padded([y for _, y in points], 0.08)))
    figure.update_layout(height=460)
    return figure


def _surface(comparison: SearcherComparison, group: Group, index: int) -> Iterator[go.Scatter]:
    first, second = comparison.objectives
    name = html.escape(group.label)
    yield go.Scatter(
        x=[point[0] for run in group.runs for point in run.front],
        y=[point[1] for run in group.runs for point in run.front],
        mode="markers", marker={"size": 5, "color": _colour(index, 0.45)}, legendgroup=group.label, showlegend=False,
        text=[f"seed {run.seed}" for run in group.runs for _ in run.front],
        hovertemplate=f"{name}, %{{text}}: %{{x:.4g}}, %{{y:.4g}}<extra></extra>",
    )  # fmt: skip
    # The surface goes on from its first and last corner to where the worst reference model or front point is.
    points = [point for each in comparison.groups for run in each.runs for point in run.front]
    worst = [
        o.sign * min(o.sign * value for value in (comparison.reference[o.name], *(point[i] for point in points)))
        for i, o in enumerate((first, second))
    ]
    corners = [(worst[0], group.surface[0][1]), *group.surface, (group.surface[-1][0], worst[1])]
    yield go.Scatter(
        x=[x for x, _ in corners], y=[y for _, y in corners], mode="lines", name=name, legendgroup=group.label,
        line={"shape": "vh", **_line(index)},
        hovertemplate=f"half of the runs reach %{{x:.4g}}, %{{y:.4g}}<extra>{name}</extra>",
    )  # fmt: skip


def _drawable(band: Band) -> Band:
    """Return ``band``, with a second step where it has one only, which would not be seen."""
    if len(band.spent) != 1:
        return band
    return Band((band.spent[0], band.spent[0] + 1), band.low * 2, band.median * 2, band.high * 2)


def _line(index: int) -> dict[str, object]:
    return {"width": 2.5, "color": _colour(index, 1), "dash": DASHES[index // len(COLOURS) % len(DASHES)]}


def _colour(index: int, opacity: float) -> str:
    return "rgba({},{},{},{})".format(*COLOURS[index % len(COLOURS)], opacity)
