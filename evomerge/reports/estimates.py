"""What reports say of estimated scores: how they were made, what they cost, and how far off they were."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from evomerge.reports import wording
from evomerge.reports.plots import COLOURS, padded
from evomerge.reports.summary import EstimateCheck, Estimates, Interval, ItemsSpent, ObjectiveInfo

_PALE = "rgba(47,111,214,0.3)"


@dataclass(frozen=True)
class CostRow:
    """One line of the table of items asked."""

    task: str
    cells: tuple[str, ...]


def method(estimates: Estimates) -> str:
    """Return how trials were scored, in one sentence."""
    most = "at most " if estimates.adaptive else ""
    counts = sorted({one.search for one in estimates.spent.values()})
    of = wording.whole(counts[0]) if len(counts) == 1 else f"{wording.whole(counts[0])}–{wording.whole(counts[-1])}"
    early = ", fewer where a trial of the front clearly dominates it" if estimates.adaptive else ""
    return (
        f"A trial's scores are estimated by {estimates.kind} from {most}{estimates.items} of the {of} search items "
        f"of each task{early}, with {bank(estimates)}."
    )


def bank(estimates: Estimates) -> str:
    """Return where the item parameters come from."""
    if estimates.bank:
        return f"the item bank {estimates.bank}"
    return f"item banks that the run made from its reference models and {estimates.merges} random merges"


def cost(estimates: Estimates) -> str:
    """Return what was saved, in one sentence."""
    total, asked = estimates.total, f"{wording.whole(estimates.total.total)} items asked"
    if not total.exact:
        return f"{asked} so far."
    saved = total.exact - total.total
    instead = f"{asked}; exact scores of the same {estimates.evaluated} trials take {wording.whole(total.exact)}"
    if saved < 0:
        return f"{instead}: {wording.whole(-saved)} fewer, as calibration costs the same for any number of trials."
    return f"{instead}: {wording.whole(saved)} saved, a factor of {factor(total)}."


def factor(spent: ItemsSpent) -> str:
    """Return how many times as many items exact scores take."""
    return f"{spent.exact / spent.total:.1f}" if spent.total else "–"


def cost_columns(estimates: Estimates) -> tuple[str, ...]:
    """Return the headings of the table of items asked."""
    soft = ("probabilities",) if estimates.total.soft else ()
    return ("search items", "a trial", "trials", "calibration", "in all", "exact", "factor", *soft)


def cost_rows(estimates: Estimates) -> list[CostRow]:
    """Return one line a task and, of several tasks, one for all."""
    rows = [_cost_row(task, spent, estimates) for task, spent in estimates.spent.items()]
    return [*rows, _cost_row("all", estimates.total, estimates)] if len(rows) > 1 else rows


def _cost_row(task: str, spent: ItemsSpent, estimates: Estimates) -> CostRow:
    each = f"{spent.trials / estimates.evaluated:.3g}" if estimates.evaluated else "–"
    counts = (spent.trials, spent.calibration, spent.total, spent.exact)
    soft = (wording.whole(spent.soft),) if estimates.total.soft else ()
    return CostRow(task, (wording.whole(spent.search), each, *map(wording.whole, counts), factor(spent), *soft))


def agreement(checks: Sequence[EstimateCheck]) -> str:
    """Return how far the estimates of one objective were off, in one line."""
    errors = [check.difference.value for check in checks]
    mean, size = math.fsum(errors) / len(errors), math.fsum(map(abs, errors)) / len(errors)
    line = f"mean error {wording.signed(mean)}, mean absolute error {wording.number(size)}"
    judged = [check.difference for check in checks if check.difference.known]
    if not judged:
        return line
    holding = sum(difference.low <= 0 <= difference.high for difference in judged)
    return f"{line}; {holding} of {len(judged)} intervals of the difference hold 0"


def check_figure(checks: Sequence[EstimateCheck], pick: int | None) -> go.Figure:
    """Return confirmed scores against estimates, with both intervals and the diagonal on which they agree."""
    low, high = padded([end for check in checks for end in _ends(check)], 0.05)
    groups = {
        "confirmed trials": [check for check in checks if check.trial != pick],
        "winner": [check for check in checks if check.trial == pick],
    }
    figure = go.Figure(
        go.Scatter(
            x=[low, high], y=[low, high], mode="lines", name="estimate = confirmed score", hoverinfo="skip",
            line={"dash": "dot", "width": 1.5, "color": COLOURS["base"]},
        )
    )  # fmt: skip
    for name, members in groups.items():
        if members:
            figure.add_trace(_points(name, members))
    figure.update_xaxes(title="estimated in the search", range=[low, high])
    figure.update_yaxes(title="on the confirmation items", range=[low, high])
    return figure.update_layout(height=400)


def _points(name: str, checks: Sequence[EstimateCheck]) -> go.Scatter:
    best = name == "winner"
    colour, bars = (COLOURS["winner"], COLOURS["winner"]) if best else (COLOURS["front"], _PALE)
    return go.Scatter(
        x=[check.estimate.value for check in checks],
        y=[check.confirmed.value for check in checks],
        error_x=_bars([check.estimate for check in checks], bars),
        error_y=_bars([check.confirmed for check in checks], bars),
        text=[f"trial {check.trial}: {wording.change(check.difference)}" for check in checks],
        name=name,
        mode="markers",
        marker={"color": colour, "size": 14 if best else 8, "symbol": "star" if best else "circle"},
        hovertemplate="%{text}<br>estimated %{x:.4g}, confirmed %{y:.4g}<extra></extra>",
    )


def _bars(intervals: Sequence[Interval], colour: str) -> dict[str, Any]:
    return {
        "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": colour,
        "array": [interval.high - interval.value for interval in intervals],
        "arrayminus": [interval.value - interval.low for interval in intervals],
    }  # fmt: skip


def _ends(check: EstimateCheck) -> Iterator[float]:
    for interval in (check.estimate, check.confirmed):
        yield from (interval.low, interval.high)


def check_captions(estimates: Estimates, objectives: Sequence[ObjectiveInfo]) -> dict[str, str]:
    """Return, by objective that was confirmed, the caption of its figure."""
    return {
        o.name: f"{o.title}: {agreement(estimates.checks[o.name])}" for o in objectives if estimates.checks.get(o.name)
    }


def ability_columns(estimates: Estimates, objectives: Sequence[ObjectiveInfo]) -> list[str]:
    """Return a heading an objective, saying where it is no ability."""
    several = {name for name, count in estimates.dimensions.items() if count > 1}
    return [f"{o.name} (expected score)" if o.name in several else o.name for o in objectives]


def ability_rows(estimates: Estimates, objectives: Sequence[ObjectiveInfo]) -> list[tuple[str, str, list[str]]]:
    """Return (label, kind, cells) for the reference models and the winner, ``winner`` being a kind."""
    order = ("parent", "base", "uniform", "trial")
    rows = sorted(estimates.abilities, key=lambda row: order.index(row.kind))
    return [
        (
            row.label,
            row.kind if row.kind in ("parent", "base", "uniform") else "winner",
            [_ability(row.values.get(o.name)) for o in objectives],
        )
        for row in rows
    ]


def _ability(value: tuple[float, float] | None) -> str:
    return "–" if value is None else wording.estimate(*value)


def ability_note(estimates: Estimates) -> str:
    """Return how to read the abilities, and why the winner's are less certain."""
    several = any(count > 1 for count in estimates.dimensions.values())
    scores = (
        " Where items ask for several abilities, which have no meaning one by one: the score on all items that these "
        "lead to."
        if several
        else ""
    )
    return (
        "Ability ± standard error, by the responses on the search items: of the reference models to all, of the "
        "winner to those it was asked. The scale is the item bank's, on which models are taken to be normal around 0 "
        f"with standard deviation 1.{scores}"
    )
