"""Figures of the trade-off: trials, front and references, one objective against another."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from evomerge.reports import wording
from evomerge.reports.plots import COLOURS, MANY_POINTS, padded
from evomerge.reports.summary import ConfirmedRow, Interval, ObjectiveInfo, ReferenceRow, RunSummary, TrialRow

Pair = tuple[ObjectiveInfo, ObjectiveInfo]
Ranges = Mapping[str, tuple[float, float]]
View = tuple[dict[str, Any], dict[str, Any]]

_GROUPS: dict[str, dict[str, Any]] = {  # in drawing order: the last lies on top
    "trials": {"color": COLOURS["trial"], "size": 6, "opacity": 0.65},
    "predicted front": {"color": COLOURS["volume"], "size": 6, "symbol": "circle-open"},
    "front": {"color": COLOURS["front"], "size": 9},
    "base": {"color": COLOURS["base"], "size": 11, "symbol": "square"},
    "uniform merge": {"color": COLOURS["uniform"], "size": 12, "symbol": "x"},
    "parents": {"color": COLOURS["parent"], "size": 12, "symbol": "diamond"},
    "winner": {"color": COLOURS["winner"], "size": 16, "symbol": "star"},
}
_GROUP_OF = {
    "parent": "parents",
    "base": "base",
    "uniform": "uniform merge",
    "trial": "front",
    "prediction": "predicted front",
}
_LABELLED = ("parents", "winner")
_SIDES = ("top center", "bottom center", "middle right", "middle left")  # so that close names can be read
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_NAMED = ("base", "uniform merge", "parents", "winner")


@dataclass(frozen=True)
class _Point:
    """A model in a plot: which group it is drawn with, and its objectives (with intervals once confirmed)."""

    label: str
    group: str
    values: Mapping[str, float]
    intervals: Mapping[str, Interval] | None = None

    def belongs(self, group: str) -> bool:
        """Whether the point is drawn with ``group``; the winner is drawn on the front's line too."""
        return self.group == group or (self.group == "winner" and group == "front")

    def reach(self, name: str) -> tuple[float, float]:
        """Return how far below and above its value the 95% interval of an objective goes."""
        interval = (self.intervals or {}).get(name)
        value = self.values[name]
        return (max(0.0, value - interval.low), max(0.0, interval.high - value)) if interval else (0.0, 0.0)


def front_figures(summary: RunSummary) -> tuple[go.Figure, go.Figure | None]:
    """Return the plot on the search items and, once there is one, on the confirmation items.

    Estimated scores on the search items have their intervals drawn for the front; all trials' would hide each other.
    The front that surrogates predict is drawn beside the evaluated one; the points of it that were confirmed are on
    the second plot, where they scored.

    With more than two objectives a menu on each figure chooses the pair that is drawn.
    """
    searched, confirmed = [*_searched(summary), *_predicted(summary)], _confirmed(summary)
    second = _plane(confirmed, summary.objectives, edge=False) if confirmed else None
    return _plane(searched, summary.objectives, edge=True), second


def profile_figure(summary: RunSummary) -> go.Figure:
    """Return one line a model across all objectives, on the search items, the better the higher.

    Each objective runs from the worst to the best value drawn, so different scales can be compared.
    """
    points = [point for point in _searched(summary) if point.group != "trials"]
    parents = [point.label for point in points if point.group == "parents"]
    dashes = {label: _DASHES[index % len(_DASHES)] for index, label in enumerate(parents)}
    figure, shown = go.Figure(), set[str]()
    for point in points:
        label = html.escape(point.label) if point.group in _NAMED else point.group
        figure.add_trace(
            go.Scatter(
                x=[html.escape(o.name) for o in summary.objectives],
                y=[_height(point, o, points) for o in summary.objectives],
                text=[wording.number(point.values[o.name]) for o in summary.objectives],
                name=label,
                legendgroup=label,
                showlegend=label not in shown,
                mode="lines+markers",
                marker={**_GROUPS[point.group], "size": 7},
                line={
                    "width": 3 if point.group == "winner" else 1.5,
                    "color": _GROUPS[point.group]["color"],
                    "dash": dashes.get(point.label, "solid"),
                },
                hovertemplate=f"{html.escape(point.label)}: %{{text}}<extra></extra>",
            )
        )
        shown.add(label)
    figure.update_yaxes(title="worst → best drawn", showticklabels=False, range=[-0.05, 1.08])
    return figure


def _height(point: _Point, objective: ObjectiveInfo, points: Sequence[_Point]) -> float:
    values = [other.values[objective.name] for other in points]
    part = (point.values[objective.name] - min(values)) / ((max(values) - min(values)) or 1.0)
    return part if objective.sign > 0 else 1 - part


def _searched(summary: RunSummary) -> list[_Point]:
    points = [_trial_point(trial, summary.pick) for trial in summary.complete]
    return points + [_Point(row.name, _reference_group(row), row.objectives) for row in summary.references]


def _trial_point(trial: TrialRow, pick: int | None) -> _Point:
    group = "winner" if trial.number == pick else "front" if trial.on_front else "trials"
    drawn = group != "trials" and trial.standard_errors
    intervals = {name: trial.interval(name) for name in trial.standard_errors} if drawn else None
    return _Point(f"trial {trial.number}", group, trial.objectives or {}, intervals)


def _predicted(summary: RunSummary) -> list[_Point]:
    front = summary.surrogates.front if summary.surrogates else ()
    return [_Point("as predicted", "predicted front", objectives) for objectives in front]


def _confirmed(summary: RunSummary) -> list[_Point]:
    return [_confirmed_point(row, summary.pick) for row in summary.confirmed]


def _confirmed_point(row: ConfirmedRow, pick: int | None) -> _Point:
    group = "winner" if row.trial is not None and row.trial == pick else _reference_group(row)
    return _Point(row.label, group, {name: i.value for name, i in row.objectives.items()}, row.objectives)


def _reference_group(row: ReferenceRow | ConfirmedRow) -> str:
    return _GROUP_OF[row.kind]


def _axis(points: Sequence[_Point], name: str) -> tuple[float, float]:
    ends = [(point.values[name], point.reach(name)) for point in points]
    return padded([v - low for v, (low, _) in ends] + [v + high for v, (_, high) in ends], 0.1)


def _plane(points: Sequence[_Point], objectives: Sequence[ObjectiveInfo], *, edge: bool) -> go.Figure:
    """Return the points, by group; ``edge``: the front is joined by the edge of what it dominates."""
    ranges = {objective.name: _axis(points, objective.name) for objective in objectives}
    pairs = list(itertools.combinations(objectives, 2))
    grouped = [(name, [p for p in points if p.belongs(name)]) for name in _GROUPS]
    groups = [(name, _sorted(members, objectives)) for name, members in grouped if members]
    figure = go.Figure([_trace(name, members, objectives, edge) for name, members in groups])
    views = [_view([members for _, members in groups], pair, ranges) for pair in pairs]
    data, layout = views[0]
    for trace, index in zip(figure.data, range(len(groups)), strict=True):
        trace.update({key.replace(".", "_"): values[index] for key, values in data.items()})
    figure.update_layout({key.replace(".", "_"): value for key, value in layout.items()})
    if len(pairs) > 1:
        figure.update_layout(updatemenus=[_menu(pairs, views)])
    return figure


def _sorted(points: Sequence[_Point], objectives: Sequence[ObjectiveInfo]) -> list[_Point]:
    return sorted(points, key=lambda p: (p.values[objectives[0].name], p.values[objectives[1].name]))


def _trace(name: str, points: Sequence[_Point], objectives: Sequence[ObjectiveInfo], edge: bool) -> Any:
    kind = go.Scattergl if len(points) > MANY_POINTS else go.Scatter
    labels = [html.escape(point.label) for point in points]
    stairs = name == "front" and len(objectives) == 2 and edge
    trace = kind(
        name=name,
        text=labels,
        marker=_GROUPS[name],
        mode="lines+markers" if stairs else "markers+text" if name in _LABELLED else "markers",
        hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
    )
    if stairs:
        shape = "vh" if objectives[0].sign > 0 else "hv"  # the edge of what the front dominates
        trace.update(line={"shape": shape, "width": 1.5, "color": COLOURS["front"]})
    if name in _LABELLED:
        sides = [_SIDES[index % len(_SIDES)] for index in range(len(points))]
        trace.update(textposition=sides, textfont={"size": 11})
    return trace


def _view(groups: Sequence[Sequence[_Point]], pair: Pair, ranges: Ranges) -> View:
    """Return what plotly's ``restyle`` and ``relayout`` need to draw one pair of objectives."""
    data = dict(_columns(groups, pair))
    layout: dict[str, Any] = {}
    for axis, objective in zip(("xaxis", "yaxis"), pair, strict=True):
        layout[f"{axis}.title.text"] = html.escape(objective.title)
        layout[f"{axis}.range"] = list(ranges[objective.name])
    return data, layout


def _columns(groups: Sequence[Sequence[_Point]], pair: Pair) -> Iterator[tuple[str, list[Any]]]:
    for axis, objective in zip("xy", pair, strict=True):
        name = objective.name
        yield axis, [[point.values[name] for point in points] for points in groups]
        if any(point.intervals for points in groups for point in points):
            yield f"error_{axis}", [_error_bars(points, name) for points in groups]


def _error_bars(points: Sequence[_Point], name: str) -> dict[str, Any]:
    if not any(point.intervals for point in points):
        return {"type": "data", "visible": False}
    reaches = [point.reach(name) for point in points]
    below, above = [low for low, _ in reaches], [high for _, high in reaches]
    crowded = any(point.group == "front" for point in points)
    return {
        "type": "data", "symmetric": False, "arrayminus": below, "array": above, "thickness": 1, "width": 3,
        "color": "rgba(47,111,214,0.25)" if crowded else _GROUPS[points[0].group]["color"],
    }  # fmt: skip


def _menu(pairs: Sequence[Pair], views: Sequence[View]) -> dict[str, Any]:
    buttons = [
        {"label": html.escape(f"{a.name} × {b.name}"), "method": "update", "args": list(view)}
        for (a, b), view in zip(pairs, views, strict=True)
    ]
    place = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    return {"buttons": buttons, "font": {"size": 12}, **place}
