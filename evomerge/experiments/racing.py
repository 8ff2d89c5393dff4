"""What a trial is asked when its objectives are estimated: always the same few items, or a race.

In a race items come in batches (of rotating ones a candidate's own, of others those that its responses so far make the
most telling), and a candidate that some trial of the front clearly dominates is asked no more. Rivals are the trials
told when the candidate was asked, so that timing changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from scipy.special import ndtr

from evomerge.experiments import fronts
from evomerge.experiments.evaluations import Asked, Asking, Scored, digest
from evomerge.experiments.journal import Trial
from evomerge.experiments.smoothing import Noisy, Smoother
from evomerge.fitness import Fitness, Responses
from evomerge.fitness.estimation import Estimated, Estimation
from evomerge.recipes import Recipe
from evomerge.search_spaces.genes import Gene, Genome
from evomerge.searchers import ObjectiveSpec

CONFIRMED, SURE = 12, 0.95  # so many are confirmed at least, but none that is dominated with this probability
TIES = 3  # of trials with equal estimates, so many are confirmed
_LEAST_SPREAD, _LEAST_ERROR = 1e-9, 1e-3


class EstimatedPlan:
    """Objectives estimated from a few items of each task (a ``Plan`` of the evaluations).

    Args:
        fitness: whose items these are.
        estimation: chooses items and estimates.
        objectives: what the trials are compared by.
        genes: of the search space, over which estimates are smoothed if the experiment says so.
        known: genomes with their exact scores, by objective.
    """

    name = "search"

    def __init__(
        self,
        fitness: Fitness,
        estimation: Estimation,
        objectives: Sequence[ObjectiveSpec],
        genes: Sequence[Gene] = (),
        known: Sequence[tuple[Genome, Mapping[str, float]]] = (),
    ) -> None:
        self._fitness, self._estimation, self._objectives = fitness, estimation, tuple(objectives)
        self._front: list[Trial] = []
        self._known: set[str] = set()
        smooth = estimation.config.smooth
        self._smoothers = {objective.name: Smoother(genes) for objective in objectives} if smooth else {}
        for name, smoother in self._smoothers.items():
            for genome, scores in known:
                smoother.tell(Noisy(genome, scores[name], 0.0))

    @property
    def digest(self) -> str:
        """Of the items chosen before the search, and of the rules of the race."""
        config = self._estimation.config.adaptive
        rules = "" if config is None else config.model_dump_json()
        items = self._estimation.items
        return digest(items, self._estimation.gold(items, first=True)) + rules

    def told(self, trial: Trial) -> None:
        """Take in a trial: the front so far is what candidates race against."""
        if trial.objectives is None:
            return
        if trial.recipe_hash not in self._known:  # the same responses again say nothing new
            for name, (value, error) in trial.own.items():
                self._smoothers[name].tell(Noisy(trial.genome, value, error))
        self._known.add(trial.recipe_hash)
        candidates = [*self._front, trial]
        kept = fronts.front([t.objectives or {} for t in candidates], self._objectives)
        self._front = [candidates[row] for row in kept]

    def score(self, responses: Responses, genome: Genome, recipe_hash: str) -> Scored:
        """Return the estimates and their standard errors, smoothed over the trials told so far."""
        own = self._estimation.score(self._fitness, responses)
        found = dict(own)
        for name, smoother in self._smoothers.items():
            also = None if recipe_hash in self._known else Noisy(genome, *own[name])
            smoothed = smoother.smoothed([genome], also)
            found[name] = Estimated(*smoothed[0]) if smoothed else own[name]
        errors = {name: estimate.standard_error for name, estimate in found.items()}
        values = {name: estimate.value for name, estimate in found.items()}
        return Scored(values, errors, {name: own[name] for name in self._smoothers})

    def final_front(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials that are, or may be, on the front in the light of all that was told, in order.

        Few items give many trials the very same estimates; of those only the latest are kept. Where the front is small,
        the trials that are the least surely dominated come too.
        """
        found = list({trial.recipe_hash: trial for trial in trials if trial.objectives is not None}.values())
        revised = self._revised(found)
        on_front = fronts.front([trial.objectives or {} for trial in revised], self._objectives)
        kept: list[int] = []
        alike: Counter[tuple[float, ...]] = Counter()
        for row in reversed(on_front):
            key = tuple((revised[row].objectives or {}).values())
            alike[key] += 1
            if alike[key] <= TIES:
                kept.append(row)
        rivals = [revised[row] for row in kept]
        others = sorted(set(range(len(revised))) - set(on_front), reverse=True)
        doubts = {row: dominated(_estimates(revised[row]), rivals, self._objectives) for row in others}
        likeliest = sorted((row for row in others if doubts[row] < SURE), key=doubts.__getitem__)
        return [found[row] for row in sorted(kept + likeliest[: max(0, CONFIRMED - len(kept))])]

    def _revised(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return trials with objectives, these and their standard errors smoothed over all that was told."""
        values = [dict(trial.objectives or {}) for trial in trials]
        errors = [dict(trial.standard_errors) for trial in trials]
        for name, smoother in self._smoothers.items():
            for row, found in enumerate(smoother.smoothed([trial.genome for trial in trials]) or []):
                values[row][name], errors[row][name] = found
        return [
            replace(trial, objectives=value, standard_errors=error)
            for trial, value, error in zip(trials, values, errors, strict=True)
        ]

    @property
    def asks_again(self) -> bool:
        """Whether candidates race."""
        return self._estimation.config.adaptive is not None

    def begin(self, recipe: Recipe, genome: Genome) -> Asking:
        """Return what decides on the items of the candidate asked now."""
        items, config = self._estimation.items_of(recipe.hash), self._estimation.config
        if config.adaptive is None:
            whole = Asked(items, self._estimation.gold(items, first=True))
            return lambda responses: whole if responses is None else None
        rivals, batch, confidence = tuple(self._front), config.adaptive.batch, config.adaptive.confidence
        expected = {name: smoother.smoothed([genome]) for name, smoother in self._smoothers.items()}

        def asking(responses: Responses | None) -> Asked | None:
            if responses is None:
                first = {task: names[:batch] for task, names in items.items()}
                return Asked(first, self._estimation.gold(first, first=True))
            own = self._estimation.score(self._fitness, responses)
            known = {name: _both(estimate, expected.get(name)) for name, estimate in own.items()}
            if dominated(known, rivals, self._objectives) >= confidence:
                return None
            more = self._estimation.more(self._fitness, responses, items, batch)
            return Asked(more, self._estimation.gold(more, first=False)) if more else None

        return asking


def _estimates(trial: Trial) -> dict[str, tuple[float, float]]:
    return {name: (value, trial.standard_errors.get(name, 0.0)) for name, value in (trial.objectives or {}).items()}


def _both(own: Estimated, expected: Sequence[tuple[float, float]] | None) -> Estimated:
    """Return a candidate's own estimate together with what its neighbours let expect."""
    if not expected:
        return own
    value, error = expected[0]
    weights = max(own.standard_error, _LEAST_ERROR) ** -2, max(error, _LEAST_ERROR) ** -2
    return Estimated((weights[0] * own.value + weights[1] * value) / sum(weights), sum(weights) ** -0.5)


def dominated(
    candidate: Mapping[str, tuple[float, float]], rivals: Sequence[Trial], objectives: Sequence[ObjectiveSpec]
) -> float:
    """Return how probably the likeliest of the rivals is better in every objective, in [0, 1].

    Errors are taken as normal and independent. As trials are asked much the same items, theirs go together, and the
    probability is rather too small.

    Args:
        candidate: objective to value and standard error.
        rivals: trials with objectives.
        objectives: what they are compared by.
    """
    return max((_better(rival, candidate, objectives) for rival in rivals), default=0.0)


def _better(rival: Trial, candidate: Mapping[str, tuple[float, float]], objectives: Sequence[ObjectiveSpec]) -> float:
    chance = 1.0
    for objective in objectives:
        value, error = candidate[objective.name]
        sign = 1 if objective.direction == "maximize" else -1
        gain = sign * ((rival.objectives or {})[objective.name] - value)
        spread = math.hypot(error, rival.standard_errors.get(objective.name, 0.0))
        chance *= float(ndtr(gain / max(spread, _LEAST_SPREAD)))
    return chance
