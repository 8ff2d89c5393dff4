"""Models × objectives as the HTML report's tables show them: texts, the best, and where intervals lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.reports import wording
from evomerge.reports.summary import Z95, Interval, ObjectiveInfo, RunSummary, TrialRow
from evomerge.reports.tables import by_mean_rank

MEAN = "mean of objectives"


@dataclass(frozen=True)
class Cell:
    """One score: its text, its interval's text, whether it is the column's best; per cent along it."""

    text: str
    interval: str = ""
    best: bool = False
    low: float = 0.0
    at: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Row:
    """One model; ``kind`` (parent, base, uniform, trial, winner) styles it."""

    label: str
    kind: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ScoreTable:
    """Column headings and rows; ``note`` says which items the scores are from."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str
    left_out: int = 0


@dataclass(frozen=True)
class _Scored:
    label: str
    kind: str
    values: Mapping[str, Interval]


def confirmed_scores(summary: RunSummary) -> ScoreTable:
    """Return parents, base, uniform merge and winner on the confirmation items, with intervals."""
    rows = [
        _Scored(row.label, "winner" if row.trial is not None else row.kind, {**row.objectives, MEAN: row.mean})
        for row in wording.compared_rows(summary)
    ]
    return _table(rows, _columns(summary), "On the confirmation items, which the search never saw; 95% intervals.")


def search_scores(summary: RunSummary, most: int = 5) -> ScoreTable:
    """Return the references and the front's first trials on the search items; with intervals where estimated."""
    rows = [_Scored(row.name, row.kind, _exact(row.objectives, summary)) for row in summary.references]
    for trial in by_mean_rank(summary.front, summary.objectives)[:most]:
        rows.append(_Scored(f"trial {trial.number}", "trial", _of_trial(trial, summary)))
    note = f"On the search items, which the search optimises: expect less on others.{_estimated(summary)}"
    return _table(rows, _columns(summary), note)


def front_scores(summary: RunSummary, most: int) -> ScoreTable | None:
    """Return the front's trials, once confirmed only those that were; None when that adds nothing."""
    front = by_mean_rank(summary.front, summary.objectives)
    confirmed = {row.trial: row for row in summary.confirmed if row.trial is not None}
    if confirmed:  # scores on different items must not share a table
        front = [trial for trial in front if trial.number in confirmed]
    if len(front) < 2:
        return None
    rows = []
    for trial in front[:most]:
        row = confirmed.get(trial.number)
        kind = "winner" if trial.number == summary.pick else "trial"
        values = {**row.objectives, MEAN: row.mean} if row else _of_trial(trial, summary)
        rows.append(_Scored(f"trial {trial.number}", kind, values))
    note = "On the confirmation items." if confirmed else f"On the search items.{_estimated(summary)}"
    return _table(rows, _columns(summary), note, left_out=max(0, len(front) - most))


def prediction_scores(summary: RunSummary, most: int) -> ScoreTable | None:
    """Return the confirmed points of the predicted front, the best mean first; None where there are none."""
    found = sorted(summary.predictions, key=lambda row: -row.mean.value)
    if not found:
        return None
    rows = [
        _Scored(row.label, "winner" if row.trial == summary.pick else "trial", {**row.objectives, MEAN: row.mean})
        for row in found[:most]
    ]
    left_out = max(0, len(found) - most)
    return _table(rows, _columns(summary), "On the confirmation items: where the predictions scored.", left_out)


def _columns(summary: RunSummary) -> list[ObjectiveInfo]:
    return [*summary.objectives, *([ObjectiveInfo(MEAN)] if len(summary.objectives) > 1 else [])]


def _exact(objectives: Mapping[str, float], summary: RunSummary) -> dict[str, Interval]:
    values = {name: Interval(value, value, value) for name, value in objectives.items()}
    weight = sum(o.weight for o in summary.objectives) or 1.0
    mean = sum(o.weight * o.sign * objectives[o.name] for o in summary.objectives) / weight
    return {**values, MEAN: Interval(mean, mean, mean)}


def _of_trial(trial: TrialRow, summary: RunSummary) -> dict[str, Interval]:
    """Return a trial's scores and their mean, whose error takes those of the objectives as independent."""
    exact = _exact(trial.objectives or {}, summary)
    weight = sum(o.weight for o in summary.objectives) or 1.0
    error = math.hypot(*(o.weight / weight * trial.standard_errors.get(o.name, 0.0) for o in summary.objectives))
    mean = exact[MEAN].value
    return {
        **{o.name: trial.interval(o.name) for o in summary.objectives},
        MEAN: Interval(mean, mean - Z95 * error, mean + Z95 * error),
    }


def _estimated(summary: RunSummary) -> str:
    return " Trials' scores are estimates from a few items, with 95% intervals." if summary.estimates else ""


def _table(rows: Sequence[_Scored], columns: Sequence[ObjectiveInfo], note: str, left_out: int = 0) -> ScoreTable:
    cells = [[_cell(row.values[c.name], [r.values[c.name] for r in rows], c) for c in columns] for row in rows]
    heads = tuple(c.name + ("" if c.sign > 0 else " ↓") for c in columns)
    made = tuple(Row(row.label, row.kind, tuple(line)) for row, line in zip(rows, cells, strict=True))
    return ScoreTable(heads, made, note, left_out)


def _cell(own: Interval, column: Sequence[Interval], objective: ObjectiveInfo) -> Cell:
    low, high = min(i.low for i in column), max(i.high for i in column)
    scale = 100 / ((high - low) or 1.0)
    best = max(objective.sign * i.value for i in column)
    return Cell(
        text=wording.number(own.value),
        interval=wording.ends(own) if own.high > own.low else "",
        best=objective.sign * own.value == best,
        low=round((own.low - low) * scale, 2),
        at=round((own.value - low) * scale, 2),
        high=round((own.high - low) * scale, 2),
    )
