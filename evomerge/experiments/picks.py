"""The pick: which of the confirmed candidates, trials and predictions, is the run's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.experiments import fronts
from evomerge.experiments.preferences import best, read_preference
from evomerge.searchers import ObjectiveSpec


def pick(rule: str, candidates: Mapping[int, fronts.Scores], objectives: Sequence[ObjectiveSpec]) -> int:
    """Return the number that ``rule`` picks among ``candidates`` (number of a trial or prediction to objectives).

    ``best-mean`` takes the largest weighted mean; ``objective:NAME`` the best on one objective, then on the mean;
    ``knee`` the candidate farthest beyond the plane through the front's extremes, the objectives scaled to the front's
    range (Das 1999, "On characterizing the knee of the Pareto curve"); ``prefer:a=2,b=1`` what suits
    these weights best (see `preferences`); ``trial:N`` is number N.

    Raises:
        ConfigError: no such objective or number.
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
    if rule.startswith("prefer:"):
        weights = read_preference(rule.removeprefix("prefer:"), objectives, "--pick")
        return numbers[best([candidates[n] for n in numbers], weights, objectives)]
    gains = fronts.as_gains([candidates[n] for n in numbers], objectives)
    means = np.array([fronts.weighted_mean(candidates[n], objectives) for n in numbers])
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
