"""Made-up runs for tests of reports and displays: plausible numbers, seeded, no models."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from evomerge.fronts import Quality
from evomerge.reports.summary import (
    Comparison,
    ConfirmedKind,
    ConfirmedRow,
    Interval,
    ObjectiveInfo,
    ReferenceRow,
    RunSummary,
    TrialRow,
)

PARENTS = ("math", "japanese", "comparison", "counting")
TASKS = ("arithmetic_ja", "arithmetic_en", "reading_ja", "counting_en")
BEGIN = datetime(2025, 1, 2, 10, 0, tzinfo=UTC)


def example_summary(
    *,
    objectives: int = 2,
    layers: int = 0,
    trials: int = 40,
    failed: Sequence[int] = (),
    confirmed: bool = True,
    gain: float = 0.05,
    minimize_last: bool = False,
) -> RunSummary:
    """Return a run whose first gene decides most of every objective.

    Args:
        objectives: 1 to 4.
        layers: genes over so many layers; 0 for eight genes without depth.
        trials: finished trials.
        failed: numbers of those that failed.
        confirmed: whether the front was confirmed and a winner picked.
        gain: the winner's lead over the uniform merge, whose interval is ± 0.02.
        minimize_last: whether the last objective is a loss.
    """
    infos = _objectives(objectives, minimize_last)
    genes = _genes(layers)
    rows = _with_front([_trial(number, genes, infos, number in failed) for number in range(trials)], infos)
    front = [row for row in rows if row.on_front]
    done = bool(confirmed and front)
    pick = front[-1].number if done else None
    return RunSummary(
        name="cross-lingual-math",
        folder="runs/example",
        status="finished" if done else "running",
        experiment_yaml="name: cross-lingual-math\nsearcher: {kind: nsga2, seed: 0}\n",
        objectives=infos,
        genes=genes,
        trials=rows,
        references=_references(infos),
        hypervolume=[(row.number, 0.5 + row.number / 1000) for row in rows],
        reference_point={info.name: 0.0 for info in infos},
        confirmed=_confirmed(front, infos) if done else [],
        pick=pick,
        pick_rule="best-mean" if done else "",
        comparisons=_comparisons(gain) if done else [],
        winner_recipe_yaml="merge_method: ties\nbase_model: zoo/base\n" if done else None,
        versions={"evomerge": "0.1.0"},
        facts={"seed": "0"},
        wall_seconds=0.7 * trials,
        budget=max(trials, 40),
        quality=Quality(0.5 + (trials - 1) / 1000, len(front), 0.4) if objectives > 1 else None,
    )


def _objectives(count: int, minimize_last: bool) -> list[ObjectiveInfo]:
    infos = [ObjectiveInfo(task, task=task, metric="exact_match,none") for task in TASKS[:count]]
    return [*infos[:-1], replace(infos[-1], direction="minimize")] if minimize_last else infos


def _genes(layers: int) -> list[str]:
    depths = [f".layer{layer}" for layer in range(layers)] or [""]
    groups = ("attention", "mlp")
    return [f"{parent}.weight{depth}.{group}" for parent in PARENTS for depth in depths for group in groups]


def _trial(number: int, genes: Sequence[str], infos: Sequence[ObjectiveInfo], failed: bool) -> TrialRow:
    generator = random.Random(number)
    genome = {gene: generator.random() for gene in genes}
    first = genome[genes[0]]
    scores = {info.name: _value(info, 0.3 + 0.4 * first + 0.1 * generator.random()) for info in infos}
    return TrialRow(
        number=number,
        genome=genome,
        objectives=None if failed else scores,
        state="failed" if failed else "complete",
        seconds=1.2,
        merge_seconds=0.1,
        forward_seconds=1.0,
        finished=BEGIN + timedelta(seconds=0.7 * number),
        error=f'Traceback (most recent call last):\n  File "task.py", line 3\nValueError: bad {number}'
        if failed
        else None,
        worker=f"cpu-{number % 2}",
    )


def _value(info: ObjectiveInfo, score: float) -> float:
    return score if info.sign > 0 else 5 - 3 * score


def _with_front(rows: Sequence[TrialRow], infos: Sequence[ObjectiveInfo]) -> list[TrialRow]:
    complete = [row for row in rows if row.objectives is not None]
    return [
        replace(row, on_front=row.objectives is not None and not any(_dominates(o, row, infos) for o in complete))
        for row in rows
    ]


def _dominates(one: TrialRow, other: TrialRow, infos: Sequence[ObjectiveInfo]) -> bool:
    pairs = [(i.sign * (one.objectives or {})[i.name], i.sign * (other.objectives or {})[i.name]) for i in infos]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _references(infos: Sequence[ObjectiveInfo]) -> list[ReferenceRow]:
    rows = []
    for index, parent in enumerate(PARENTS):
        scores = {i.name: _value(i, 0.9 if place == index else 0.35) for place, i in enumerate(infos)}
        rows.append(ReferenceRow(parent, "parent", scores))
    rows.append(ReferenceRow("base", "base", {i.name: _value(i, 0.4) for i in infos}))
    return [*rows, ReferenceRow("uniform", "uniform", {i.name: _value(i, 0.6) for i in infos})]


def _confirmed(front: Sequence[TrialRow], infos: Sequence[ObjectiveInfo]) -> list[ConfirmedRow]:
    rows = [_confirmed_row(r.name, None, r.kind, r.objectives, infos) for r in _references(infos)]
    return rows + [
        _confirmed_row(f"trial {row.number}", row.number, "trial", row.objectives or {}, infos) for row in front
    ]


def _confirmed_row(
    label: str,
    trial: int | None,
    kind: ConfirmedKind,
    values: Mapping[str, float],
    infos: Sequence[ObjectiveInfo],
) -> ConfirmedRow:
    mean = sum(info.sign * values[info.name] for info in infos) / len(infos)
    intervals = {name: Interval(value, value - 0.03, value + 0.03, 512) for name, value in values.items()}
    return ConfirmedRow(label, trial, kind, intervals, Interval(mean, mean - 0.02, mean + 0.02, 512 * len(infos)))


def _comparisons(gain: float) -> list[Comparison]:
    lead = Interval(gain, gain - 0.02, gain + 0.02, 1024)
    return [
        Comparison("math", Interval(0.1, 0.08, 0.12, 1024), 1e-9),
        Comparison("uniform", lead, 0.001 if abs(gain) > 0.02 else 0.4),
    ]
