"""Comparison of searchers: runs with different seeds, grouped by searcher, at equal cost.

One run says little about a searcher, as another seed may end elsewhere. So searchers are compared by the median and the
quartiles of several runs, and by rank tests (``rank_tests``); fronts by their hypervolume from one reference point
(Zitzler and Thiele 1998) and by empirical attainment surfaces (Grunert da Fonseca, Fonseca and Hall 2001).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path

import moocore
import numpy as np

from evomerge.errors import ConfigError, Problem
from evomerge.experiments import fronts, rank_tests
from evomerge.experiments.compared_runs import (
    By,
    RunRecord,
    check_comparable,
    differences,
    grouped,
    names,
    read_run,
)
from evomerge.experiments.journal import Trial
from evomerge.experiments.summarise import objective_infos
from evomerge.reports.comparison import Band, Cost, Group, Pair, RunCurve, SearcherComparison, Spread
from evomerge.searchers import ObjectiveSpec

FEWEST_RUNS = 3  # of each searcher, for a p-value
SIGNIFICANT = 0.05

Scores = Mapping[str, float]


def compare(
    paths: Sequence[Path], *, by: By = "searcher", cost: Cost = "trials", paired: bool = False
) -> SearcherComparison:
    """Compare the runs in ``paths``, finished or not, up to what the shortest has spent.

    Args:
        paths: run folders.
        by: what makes runs repetitions of each other: the searcher without its seed, the experiment's name, or the
            folder that the run folders are in.
        cost: what is counted.
        paired: take runs of equal seeds together (Wilcoxon instead of Mann-Whitney).

    Raises:
        RunError: one is no run, or has no trial yet.
        ConfigError: they cannot be compared: which run, and why.
    """
    return compared([read_run(path) for path in paths], by=by, cost=cost, paired=paired)


def compared(runs: Sequence[RunRecord], *, by: By, cost: Cost, paired: bool) -> SearcherComparison:
    """Compare runs that are read; otherwise as ``compare``."""
    check_comparable(runs)
    groups = grouped(runs, by)
    if paired:
        _check_seeds(groups)
    objectives = runs[0].objectives
    reference = fronts.reference_point([scores for run in runs for scores in run.references], objectives)
    spent = {run.folder: spending(run, cost) for run in runs}
    budget = min(each[-1] for each in spent.values())
    if budget == 0:
        raise ConfigError(Problem("no run has evaluated an item", suggestion="compare by --cost trials"))
    confirmed, why_not = confirmed_values(runs)
    checkpoints = (budget // 4, budget // 2, budget)
    made = [
        make_group(
            label,
            [curve(run, spent[run.folder], budget, reference, confirmed.get(run.folder)) for run in group],
            checkpoints,
            objectives,
        )
        for label, group in groups.items()
    ]
    sign = _sign(objectives)
    made.sort(key=lambda group: -sign * _end(group).median)  # stable: the order of the runs among equals
    pairs = test_pairs(made, sign, paired)
    return SearcherComparison(
        objectives=tuple(objective_infos(runs[0].facts)),
        reference=reference,
        cost=cost,
        checkpoints=checkpoints,
        groups=tuple(made),
        pairs=tuple(pairs),
        paired=paired,
        notes=(
            *_notes_on_cost(runs, spent, budget, cost),
            *differences(groups, by),
            *_notes_on_tests(pairs, paired),
            *_notes_on_scores(runs, why_not),
        ),
    )


def spending(run: RunRecord, cost: Cost) -> list[int]:
    """Return what had been spent after each trial: trials, failed ones included, or items that models were asked.

    A recipe seen before is asked nothing, and a failed trial's items are not known and count for nothing. Estimated
    runs begin with what their calibration took. The reference models, which every run asks everything, are left out.
    """
    if cost == "trials":
        return list(range(1, len(run.trials) + 1))
    asked = (0 if trial.cached else sum(trial.items.values()) for trial in run.trials)
    return list(itertools.accumulate(asked, initial=run.calibration_items))[1:]


def improvements(
    trials: Sequence[Trial], objectives: Sequence[ObjectiveSpec], reference: Scores
) -> list[tuple[int, float]]:
    """Return each place among ``trials`` where the run's value grows, with the new value.

    The value is the hypervolume so far; with one objective the best value so far.
    """
    found: list[tuple[int, float]] = []
    front: list[Scores] = []
    for place, trial in enumerate(trials):
        if trial.objectives is None:
            continue
        candidates = [*front, trial.objectives]
        kept = [candidates[i] for i in fronts.front(candidates, objectives)]
        if kept == front:
            continue
        front = [scores for i, scores in enumerate(kept) if scores not in kept[:i]]
        now = _value(front, objectives, reference)
        if not found or now != found[-1][1]:
            found.append((place, now))
    return found


def curve(
    run: RunRecord, spent: Sequence[int], budget: int, reference: Scores, confirmed: float | None = None
) -> RunCurve:
    """Return a run as far as it goes within ``budget``.

    Args:
        run: the run.
        spent: after each of its trials.
        budget: where the comparison ends.
        reference: the hypervolume's reference point.
        confirmed: its value on the confirmation items.

    Raises:
        ConfigError: no trial within the budget has scores.
    """
    trials = run.trials[: bisect_right(spent, budget)]
    scores = [trial.objectives for trial in trials if trial.objectives is not None]
    if not scores:
        what = f"none of its first {len(trials)} trials, those compared, has scores"
        raise ConfigError(Problem(what, run.folder, "leave it out, or compare runs that went farther"))
    best = [scores[i] for i in fronts.front(scores, run.objectives)]
    places = improvements(trials, run.objectives, reference)
    return RunCurve(
        folder=run.folder,
        seed=run.seed,
        trials=len(trials),
        items=spending(run, "items")[len(trials) - 1],
        spent=tuple(spent[place] for place, _ in places),
        values=tuple(value for _, value in places),
        front=tuple(dict.fromkeys(tuple(each[o.name] for o in run.objectives) for each in best)),
        confirmed=confirmed,
    )


def make_group(
    label: str, runs: Sequence[RunCurve], checkpoints: tuple[int, int, int], objectives: Sequence[ObjectiveSpec]
) -> Group:
    """Return some runs with their medians and quartiles."""
    start = 0.0 if len(objectives) > 1 else math.nan  # before the first scores
    known = [run.confirmed for run in runs if run.confirmed is not None]
    return Group(
        label=label,
        runs=tuple(runs),
        at=tuple(_spread_at(runs, cost, start) for cost in checkpoints),
        band=band(runs, checkpoints[-1], start),
        confirmed=spread(known) if len(known) == len(runs) else None,
        surface=attainment(runs, objectives) if len(objectives) == 2 else (),
    )


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles, between two values in proportion (R's and numpy's default)."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return Spread(float(low), float(median), float(high))


def value_at(run: RunCurve, cost: int, start: float) -> float:
    """Return the run's value once ``cost`` is spent; ``start`` before its first."""
    place = bisect_right(run.spent, cost)
    return run.values[place - 1] if place else start


def band(runs: Sequence[RunCurve], budget: int, start: float) -> Band:
    """Return the quartiles over runs at each cost where one of them changes, from where all have a value."""
    costs = sorted({0, budget, *(cost for run in runs for cost in run.spent)})
    found = [(cost, _spread_at(runs, cost, start)) for cost in costs]
    known = [(cost, at) for cost, at in found if at is not None]
    return Band(
        spent=tuple(cost for cost, _ in known),
        low=tuple(at.low for _, at in known),
        median=tuple(at.median for _, at in known),
        high=tuple(at.high for _, at in known),
    )


def attainment(runs: Sequence[RunCurve], objectives: Sequence[ObjectiveSpec]) -> tuple[tuple[float, float], ...]:
    """Return the corners of the surface that at least half of the runs attain, of two objectives.

    A run attains a point if one of its trials is at least as good in both.

    Returns:
        (first objective, second objective), the best of the first objective last.
    """
    points = [dict(zip((o.name for o in objectives), point, strict=True)) for run in runs for point in run.front]
    owners = [number for number, run in enumerate(runs) for _ in run.front]
    signs = fronts.as_gains([{o.name: 1.0 for o in objectives}], objectives)[0]
    costs = -fronts.as_gains(points, objectives)
    corners = moocore.eaf(costs, owners, percentiles=[50])[:, :2]
    gains = sorted((-float(x), -float(y)) for x, y in corners)
    return tuple((float(x * signs[0]), float(y * signs[1])) for x, y in gains)


def test_pairs(groups: Sequence[Group], sign: int, paired: bool) -> list[Pair]:
    """Return every two groups' tests at the end, corrected for all pairs (Holm).

    All pairs count, also where only those with the best are shown: which one is best is seen from the same runs.

    Args:
        groups: the best first.
        sign: +1 where larger values are better, else -1.
        paired: whether their runs are paired, in order.
    """
    tests = []
    for better, other in itertools.combinations(groups, 2):
        one, two = ([sign * run.values[-1] for run in group.runs] for group in (better, other))
        enough = min(len(one), len(two)) >= FEWEST_RUNS
        test = rank_tests.wilcoxon if paired else rank_tests.mann_whitney
        p_value = test(one, two) if enough else None
        smallest = (
            rank_tests.smallest_wilcoxon(len(one)) if paired else rank_tests.smallest_mann_whitney(len(one), len(two))
        )
        tests.append((better.label, other.label, rank_tests.larger_by_chance(one, two), p_value, smallest))
    known = [p_value for *_, p_value, _ in tests if p_value is not None]
    corrected = iter(rank_tests.holm(known))
    return [
        Pair(better, other, effect)
        if p_value is None
        else Pair(better, other, effect, next(corrected), p_value, min(1.0, len(known) * smallest))
        for better, other, effect, p_value, smallest in tests
    ]


def confirmed_values(runs: Sequence[RunRecord]) -> tuple[dict[str, float], str]:
    """Return each run's value on the confirmation items by its folder; or nothing, and why in a sentence.

    The reference point is the worst of the runs' reference models on those items.
    """
    left_out = "The fronts on confirmation items are not compared: "
    missing = [run for run in runs if run.confirmation is None]
    if missing:
        which = f"{names(missing)} {'is' if len(missing) == 1 else 'are'} not"
        return {}, f"{left_out}{'no run is' if len(missing) == len(runs) else which} finished."
    other = [run for run in runs if run.items("confirmation") != runs[0].items("confirmation")]
    if other:
        return {}, f"{left_out}{names(other)} had other items than {runs[0].folder}."
    objectives = runs[0].objectives
    rows = {run.folder: run.confirmation.rows for run in runs if run.confirmation is not None}
    worst = [row.scores for each in rows.values() for row in each if row.trial is None]
    reference = fronts.reference_point(worst, objectives)
    return {
        folder: _value([row.scores for row in each if row.trial is not None], objectives, reference)
        for folder, each in rows.items()
    }, ""


def _value(scores: Sequence[Scores], objectives: Sequence[ObjectiveSpec], reference: Scores) -> float:
    if len(objectives) > 1:
        return fronts.hypervolume(scores, objectives, reference)
    sign, name = _sign(objectives), objectives[0].name
    return sign * max(sign * each[name] for each in scores)


def _sign(objectives: Sequence[ObjectiveSpec]) -> int:
    """Return +1 where larger values of a run are better, else -1."""
    return -1 if len(objectives) == 1 and objectives[0].direction == "minimize" else 1


def _spread_at(runs: Sequence[RunCurve], cost: int, start: float) -> Spread | None:
    values = [value_at(run, cost, start) for run in runs]
    return None if any(math.isnan(value) for value in values) else spread(values)


def _end(group: Group) -> Spread:
    return spread([run.values[-1] for run in group.runs])


def _check_seeds(groups: Mapping[str, Sequence[RunRecord]]) -> None:
    first, *others = groups.items()
    problems = [
        Problem(
            f"{label} has the seeds {_listed(group)}, {first[0]} has {_listed(first[1])}",
            "--paired",
            "pairs need the same seeds in every group, each once; leave --paired out, or run the missing seeds",
        )
        for label, group in [first, *others]
        if _seeds(group) != _seeds(first[1]) or len(set(_seeds(group))) < len(group)
    ]
    if problems:
        raise ConfigError(problems)


def _seeds(group: Sequence[RunRecord]) -> list[int]:
    return [run.seed for run in group]


def _listed(group: Sequence[RunRecord]) -> str:
    return ", ".join(map(str, _seeds(group)))


def _notes_on_cost(runs: Sequence[RunRecord], spent: Mapping[str, Sequence[int]], budget: int, cost: Cost) -> list[str]:
    notes = []
    totals = {run.folder: spent[run.folder][-1] for run in runs}
    shortest = [run for run in runs if totals[run.folder] == budget]
    if len(shortest) < len(runs):
        unit = "trials" if cost == "trials" else "item evaluations"
        more = [run for run in runs if totals[run.folder] > budget]
        notes.append(
            f"Compared up to {budget:,} {unit}, all that {names(shortest)} spent; "
            f"what {names(more)} did after that is left out"
            f"{', but for the confirmed fronts' if all(run.confirmation for run in runs) else ''}."
        )
    going = [run for run in runs if len(run.trials) < run.budget]
    if going:
        done = ", ".join(f"{run.folder} has {len(run.trials)} of {run.budget} trials" for run in going)
        notes.append(f"Not finished: {done}.")
    if cost == "trials" and len({run.is_estimated for run in runs}) > 1:
        estimated = names([run for run in runs if run.is_estimated])
        notes.append(f"A trial of {estimated} asks fewer items than one of the others: see also --cost items.")
    staged = [run for run in runs if run.is_staged]
    if staged:
        notes.append(f"Of {names(staged)} only the last stage is compared; what earlier ones took is not counted.")
    return notes


def _notes_on_tests(pairs: Sequence[Pair], paired: bool) -> list[str]:
    notes = []
    few = [pair for pair in pairs if pair.p_value is None]
    if few:
        which = "" if len(few) == len(pairs) else " where one has fewer"
        notes.append(f"No p-values{which}: they need at least {FEWEST_RUNS} runs of each searcher.")
    smallest = [pair.smallest for pair in pairs if pair.smallest is not None]
    if smallest and min(smallest) >= SIGNIFICANT:
        test = "the paired test" if paired else "the test"
        notes.append(f"With so few runs {test} gives no p below {min(smallest):.2g}, however different the searchers.")
    return notes


def _notes_on_scores(runs: Sequence[RunRecord], why_not: str) -> list[str]:
    notes = [why_not] if why_not else []
    if estimated := [run for run in runs if run.is_estimated]:
        who = "All scores" if len(estimated) == len(runs) else f"The scores of {names(estimated)}"
        notes.append(
            f"{who} in the search are estimates from few items. A front of estimates looks better than it is, "
            "the more so the larger their errors: judge by the confirmed fronts."
        )
    if 0 < len(estimated) < len(runs):
        notes.append("p and A12 compare estimated with exact scores, so they do not tell which searcher is better.")
    if len(runs[0].objectives) > 2:
        notes.append("Attainment surfaces are drawn for two objectives only.")
    return notes
