"""Fronts: the non-dominated trials, their hypervolume, and the pick among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import moocore
import numpy as np

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.searchers import ObjectiveSpec

Scores = Mapping[str, float]


def as_gains(scores: Sequence[Scores], objectives: Sequence[ObjectiveSpec]) -> np.ndarray:
    """Return an array (rows, objectives) in which larger is better; float64."""
    signs = np.array([1.0 if o.direction == "maximize" else -1.0 for o in objectives])
    rows = [[row[o.name] for o in objectives] for row in scores]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(objectives)) * signs


def front(scores: Sequence[Scores], objectives: Sequence[ObjectiveSpec]) -> list[int]:
    """Return the indices of the rows that no other row dominates, equal rows included, in order."""
    if not scores:
        return []
    keep = moocore.is_nondominated(as_gains(scores, objectives), maximise=True, keep_weakly=True)
    return [int(i) for i in np.flatnonzero(keep)]


def reference_point(scores: Sequence[Scores], objectives: Sequence[ObjectiveSpec]) -> dict[str, float]:
    """Return the worst value of each objective among ``scores`` (the parents, the base and the uniform merge)."""
    gains = as_gains(scores, objectives).min(axis=0)
    signs = as_gains([{o.name: 1.0 for o in objectives}], objectives)[0]
    return {o.name: float(g * s) for o, g, s in zip(objectives, gains, signs, strict=True)}


def hypervolume(scores: Sequence[Scores], objectives: Sequence[ObjectiveSpec], reference: Scores) -> float:
    """Return the volume that ``scores`` dominate beyond ``reference``, in the product of the objectives' units."""
    if not scores:
        return 0.0
    gains, corner = as_gains(scores, objectives), as_gains([reference], objectives)[0]
    return float(moocore.hypervolume(-gains, ref=-corner))


def weighted_mean(scores: Scores, objectives: Sequence[ObjectiveSpec]) -> float:
    """Return the weighted mean of the objectives, larger better (minimised ones count negatively)."""
    weights = np.array([o.weight for o in objectives])
    if weights.sum() == 0:
        weights = np.ones_like(weights)
    return float(as_gains([scores], objectives)[0] @ weights / weights.sum())


def pick(rule: str, candidates: Mapping[int, Scores], objectives: Sequence[ObjectiveSpec]) -> int:
    """Return the trial number that ``rule`` picks among ``candidates`` (trial number to objectives).

    ``best-mean`` takes the largest weighted mean; ``objective:NAME`` the best on one objective, then on the mean;
    ``knee`` the trial farthest beyond the plane through the front's extremes, the objectives scaled to the front's
    range (Das 1999, "On characterizing the knee of the Pareto curve"); ``trial:N`` is trial N.

    Raises:
        ConfigError: no such objective or trial.
    """
    numbers = sorted(candidates)
    if rule.startswith("trial:"):
        number = int(rule.removeprefix("trial:"))
        if number not in candidates:
            on_front = ", ".join(map(str, numbers))
            raise ConfigError(
                Problem(f"trial {number} is not among the confirmed trials", "--pick", f"they are: {on_front}")
            )
        return number
    gains = as_gains([candidates[n] for n in numbers], objectives)
    means = np.array([weighted_mean(candidates[n], objectives) for n in numbers])
    if rule.startswith("objective:"):
        name = rule.removeprefix("objective:")
        names = [o.name for o in objectives]
        if name not in names:
            raise ConfigError(Problem(f"no objective is called {name!r}", "--pick", suggest(name, names)))
        order = np.lexsort((means, gains[:, names.index(name)]))
        return numbers[int(order[-1])]
    if rule == "knee" and len(numbers) > 1:
        low, high = gains.min(axis=0), gains.max(axis=0)
        scaled = (gains - low) / np.where(high > low, high - low, 1.0)
        return numbers[int(np.argmax(scaled.sum(axis=1)))]
    return numbers[int(np.argmax(means))]
