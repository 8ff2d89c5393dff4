"""Rich tables for the terminal; each fits 80 columns.

Cell texts are rich ``Text``, never markup, so a name with brackets in it is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from evomerge.recipes import Recipe
from evomerge.recipes.path_text import path_in_words
from evomerge.reports import wording
from evomerge.reports.paths import winner_recipe
from evomerge.reports.summary import ConfirmedRow, Interval, ObjectiveInfo, RunSummary, TrialRow

BEST = "bold green"
QUIET = "dim"


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> Table:
    """Return a table of texts; the first column is the name and stays on one line, the others may wrap."""
    table = _table(title)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0, style="bold" if index == 0 else "", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def methods_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return the table of merge methods: rows with ``name``, ``summary``, ``genes``, ``base``, ``paper``."""
    return _catalogue(("name", "summary", "genes", "base", "paper"), rows)


def searchers_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return the table of searchers: rows with ``name``, ``summary``, ``objectives``, ``paper``."""
    return _catalogue(("name", "summary", "objectives", "paper"), rows)


def _catalogue(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    cells = [[_without_addresses(row.get(column, "")) for column in columns] for row in rows]
    return plain_table(columns, cells)


def _without_addresses(text: str) -> str:
    """Return a citation without web addresses, for which no column is wide enough (the docs have them)."""
    return re.sub(r",?\s*https?://[^\s;,]+", "", text)


def front_table(
    trials: Sequence[TrialRow],
    objectives: Sequence[ObjectiveInfo],
    *,
    limit: int | None = None,
    pick: int | None = None,
    confirmed: Sequence[ConfirmedRow] = (),
    title: str = "Front",
) -> Table:
    """Return the trials with their objectives, the best of each column marked: the pick, then by mean rank.

    Args:
        trials: complete trials (usually the front).
        objectives: the columns; a direction is shown by an arrow.
        limit: show at most this many; the caption says how many were left out.
        pick: number of the chosen trial, marked with a star.
        confirmed: rows that add the confirmed mean as a last column.
        title: table title.
    """
    shown = sorted(by_mean_rank(trials, objectives), key=lambda trial: trial.number != pick)
    means = {row.trial: row.mean for row in confirmed if row.trial is not None}
    table = _table(title)
    table.add_column("trial", justify="right", no_wrap=True)
    for objective in objectives:
        table.add_column(heading(objective, len(objectives)), justify="right", overflow="fold")
    if means:
        table.add_column("confirmed mean", justify="right")
    best = {o.name: _best([(trial.objectives or {})[o.name] for trial in shown], o) for o in objectives}
    for trial in shown[:limit]:
        cells = [_score((trial.objectives or {})[o.name], best[o.name], _error(trial, o)) for o in objectives]
        extra = [_interval(means.get(trial.number), separator="  ")] if means else []
        table.add_row(_trial_label(trial.number, pick), *cells, *extra)
    notes = [f"and {len(shown) - limit} more"] if limit is not None and len(shown) > limit else []
    if any(trial.standard_errors for trial in shown[:limit]):
        notes.append("±: standard errors of scores estimated from a few items")
    table.caption = "; ".join(notes) or None
    return table


def predictions_table(
    predictions: Sequence[ConfirmedRow], objectives: Sequence[ObjectiveInfo], pick: int | None = None
) -> Table:
    """Return the confirmed points of the predicted front: scores on the confirmation items, below them as predicted.

    The pick comes first, then the best mean.
    """
    shown = sorted(predictions, key=lambda row: (row.trial != pick, -row.mean.value))
    table = _table("Predicted front, on the confirmation items (below: as predicted)")
    table.add_column("prediction", justify="right", no_wrap=True)
    for objective in objectives:
        table.add_column(heading(objective, len(objectives)), justify="right", overflow="fold")
    table.add_column("confirmed mean", justify="right")
    best = {o.name: _best([row.objectives[o.name].value for row in shown], o) for o in objectives}
    for row in shown:
        assert row.trial is not None
        assert row.predicted is not None
        cells = [_met(row.objectives[o.name], row.predicted.objectives[o.name], best[o.name]) for o in objectives]
        table.add_row(_trial_label(row.trial, pick), *cells, _interval(row.mean))
    return table


def confirmation_table(summary: RunSummary) -> Group:
    """Return parents, base, uniform merge and winner with 95% intervals; below, the verdicts and the winner's path."""
    rows = wording.compared_rows(summary)
    if not rows:
        return Group(Text("Nothing is confirmed yet.", style=QUIET))
    table = _table("On the confirmation items (95% intervals)")
    table.add_column("model", no_wrap=True)
    for objective in summary.objectives:
        table.add_column(heading(objective, len(summary.objectives)), justify="right", overflow="fold")
    many = len(summary.objectives) > 1
    if many:
        table.add_column("mean", justify="right")
    best = {o.name: _best([r.objectives[o.name].value for r in rows], o) for o in summary.objectives}
    best_mean = max(row.mean.value for row in rows)
    for row in rows:
        cells = [_interval(row.objectives[o.name], best[o.name]) for o in summary.objectives]
        label = Text(row.label, style="bold" if row.trial is not None else "")
        table.add_row(label, *cells, *([_interval(row.mean, best_mean)] if many else []))
    recipe = winner_recipe(summary)
    picked = summary.winner
    paths = path_lines({} if picked is None or recipe is None else {picked.label: recipe}, summary.names)
    return Group(table, *verdict_lines(summary), *paths)


def verdict_lines(summary: RunSummary) -> list[Text]:
    """Return one line for each comparison of the winner, then one for each flag."""
    lines = []
    for comparison in summary.comparisons:
        style = "green" if comparison.beats else "red" if comparison.loses else "yellow"
        lines.append(Text(wording.verdict(summary, comparison), style=style))
    return lines + [Text(f"Warning: {flag}", style="yellow") for flag in summary.flags]


def path_lines(recipes: Mapping[str, Recipe], names: Mapping[str, str]) -> list[Text]:
    """Return one line for each trial or prediction whose recipe has a path, telling it.

    Args:
        recipes: what it is called → recipe.
        names: reference → what to call that model.
    """
    told = {label: path_in_words(recipe, names) for label, recipe in recipes.items()}
    return [Text(f"Path of {label}: {words}", style=QUIET) for label, words in told.items() if words]


def heading(objective: ObjectiveInfo, columns: int = 1) -> Text:
    """Return the heading of one of ``columns`` objectives, broken at underscores; ↓: smaller is better."""
    width = 14 if columns <= 3 else 11
    lines = [""]
    for part in re.findall(r"[^_]*_?", objective.name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return Text("\n".join(lines) + ("" if objective.direction == "maximize" else " ↓"))


def by_mean_rank(trials: Sequence[TrialRow], objectives: Sequence[ObjectiveInfo]) -> list[TrialRow]:
    """Return the trials that have objectives, the best mean rank over the objectives first."""
    complete = [trial for trial in trials if trial.objectives is not None]
    ranks = dict.fromkeys((trial.number for trial in complete), 0)
    for objective in objectives:
        values = {t.number: -objective.sign * (t.objectives or {})[objective.name] for t in complete}
        ordered = sorted(values.values())
        for trial_number, value in values.items():
            ranks[trial_number] += ordered.index(value)
    return sorted(complete, key=lambda trial: (ranks[trial.number], trial.number))


def _table(title: str) -> Table:
    return Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        min_width=44,
    )


def _trial_label(trial_number: int, pick: int | None) -> Text:
    return Text(f"★ {trial_number}", style="bold") if trial_number == pick else Text(str(trial_number))


def _best(values: Sequence[float], objective: ObjectiveInfo) -> float:
    return max(values, key=lambda value: objective.sign * value, default=float("nan"))


def _error(trial: TrialRow, objective: ObjectiveInfo) -> float:
    return trial.standard_errors.get(objective.name, 0.0)


def _score(value: float, best: float, standard_error: float) -> Text:
    score = (wording.number(value), BEST if value == best else "")
    return Text.assemble(score, (f" ±{wording.number(standard_error)}", QUIET)) if standard_error else Text(*score)


def _met(scored: Interval, predicted: float, best: float) -> Text:
    value = (wording.number(scored.value), BEST if scored.value == best else "")
    return Text.assemble(value, "\n", (wording.number(predicted), QUIET))


def _interval(interval: Interval | None, best: float = float("nan"), separator: str = "\n") -> Text:
    if interval is None:
        return Text("–", style=QUIET)
    value = (wording.number(interval.value), BEST if interval.value == best else "")
    return Text.assemble(value, separator, (wording.ends(interval), QUIET))
