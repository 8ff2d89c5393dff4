"""What a trial is asked when its objectives are estimated: always the same few items, or a race.

In a race items come in batches, each chosen by the responses so far, and a candidate that some trial of the front
clearly dominates is asked no more. Rivals are the trials told when the candidate was asked, so that timing changes
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import norm

from evomerge.experiments import fronts
from evomerge.experiments.evaluations import Asked, Asking, Scored, digest
from evomerge.experiments.journal import Trial
from evomerge.fitness import Fitness, Responses
from evomerge.fitness.estimation import Estimation
from evomerge.searchers import ObjectiveSpec


class EstimatedPlan:
    """Objectives estimated from a few items of each task (a ``Plan`` of the evaluations).

    Args:
        fitness: whose items these are.
        estimation: chooses items and estimates.
        objectives: what the trials are compared by.
    """

    name = "search"

    def __init__(self, fitness: Fitness, estimation: Estimation, objectives: Sequence[ObjectiveSpec]) -> None:
        self._fitness, self._estimation, self._objectives = fitness, estimation, tuple(objectives)
        self._front: list[Trial] = []

    @property
    def digest(self) -> str:
        """Of the items chosen before the search, and of the rules of the race."""
        config = self._estimation.config.adaptive
        rules = {} if config is None else {"adaptive": (config.model_dump_json(),)}
        return digest({**self._estimation.items, **rules}, self._estimation.gold(self._estimation.items, first=True))

    def told(self, trial: Trial) -> None:
        """Take in a trial: the front so far is what candidates race against."""
        if trial.objectives is None:
            return
        candidates = [*self._front, trial]
        kept = fronts.front([t.objectives or {} for t in candidates], self._objectives)
        self._front = [candidates[row] for row in kept]

    def score(self, responses: Responses) -> Scored:
        """Return the estimates and their standard errors."""
        found = self._estimation.score(self._fitness, responses)
        errors = {name: estimate.standard_error for name, estimate in found.items()}
        return Scored({name: estimate.value for name, estimate in found.items()}, errors)

    def begin(self) -> Asking:
        """Return what decides on the items of the candidate asked now."""
        items, config = self._estimation.items, self._estimation.config
        if config.adaptive is None:
            whole = Asked(items, self._estimation.gold(items, first=True))
            return lambda responses: whole if responses is None else None
        rivals, batch, confidence = tuple(self._front), config.adaptive.batch, config.adaptive.confidence

        def asking(responses: Responses | None) -> Asked | None:
            if responses is None:
                first = {task: names[:batch] for task, names in items.items()}
                return Asked(first, self._estimation.gold(first, first=True))
            asked = max(len(found.items) for found in responses.tasks.values())
            if asked >= config.items or dominated(self.score(responses), rivals, self._objectives) >= confidence:
                return None
            more = self._estimation.more(self._fitness, responses, min(batch, config.items - asked))
            return Asked(more, self._estimation.gold(more, first=False))

        return asking


def dominated(candidate: Scored, rivals: Sequence[Trial], objectives: Sequence[ObjectiveSpec]) -> float:
    """Return how probably the likeliest of the rivals is better in every objective, in [0, 1].

    Errors are taken as normal and independent. As trials are asked much the same items, theirs go together, and the
    probability is rather too small.
    """
    if not rivals:
        return 0.0
    better = [
        math.prod(
            float(
                norm.cdf(
                    _gain(objective, rival.objectives or {}, candidate.objectives)
                    / _spread(objective, rival, candidate)
                )
            )
            for objective in objectives
        )
        for rival in rivals
    ]
    return float(np.max(better))


def _gain(objective: ObjectiveSpec, rival: Mapping[str, float], candidate: Mapping[str, float]) -> float:
    sign = 1 if objective.direction == "maximize" else -1
    return sign * (rival[objective.name] - candidate[objective.name])


def _spread(objective: ObjectiveSpec, rival: Trial, candidate: Scored) -> float:
    errors = rival.standard_errors.get(objective.name, 0.0), candidate.standard_errors.get(objective.name, 0.0)
    return max(math.hypot(*errors), 1e-9)
