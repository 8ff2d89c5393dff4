"""MAP: a quadratic surrogate of each objective from few evaluations, and the front that these predict.

Li et al. 2025, *MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation*
(https://arxiv.org/abs/2406.07529). The design is evaluated, the surrogates are fitted, and points of the predicted
front are evaluated in batches, after each of which the surrogates are fitted again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field, model_validator
from scipy.stats import qmc

from evomerge.errors import ConfigError, Problem
from evomerge.fronts import nondominated
from evomerge.search_spaces.genes import Genome, Value
from evomerge.searchers.base import SEARCHERS, ObjectiveSpec, SearcherConfig, SearcherEntry, Setting
from evomerge.searchers.box import UnitBox
from evomerge.searchers.results import InFlight, objective_values
from evomerge.searchers.surrogates.bins import uncertain_points
from evomerge.searchers.surrogates.designs import DesignName, design
from evomerge.searchers.surrogates.explanation import Explanation, Prediction, facts_of
from evomerge.searchers.surrogates.improvement import points_to_try
from evomerge.searchers.surrogates.links import Array, LinkName, suited
from evomerge.searchers.surrogates.predicted_front import OptimizerName, predicted_front
from evomerge.searchers.surrogates.quadratic import Quadratic, fit, terms_of
from evomerge.searchers.surrogates.residuals import Corrected, corrected

POPULATION, GENERATIONS = 100, 30  # of the optimizer, which begins with the last predicted front
AMORTIZED = 500  # points of the front that is kept for asking: within 1e-3 of the surrogates' own
ELSEWHERE = 256  # points beside the predicted front that may be uncertain enough to be worth a look
Surrogate: TypeAlias = Quadratic | Corrected
FEWEST = 2  # evaluations that a fit needs


class MapConfig(SearcherConfig):
    """Options of MAP. The first trials are the starting points and the design."""

    kind: Literal["map"] = Field("map", description="the searcher's name")
    variant: Literal["plain", "bayesian", "nested"] = Field(
        "plain",
        description="plain: evaluate the predicted front; bayesian: also where surrogates are uncertain; nested: merge "
        "two at a time, up a tree",
    )
    design: DesignName = Field("latin-hypercube", description="the first points; mixed is the paper's")
    points: int | None = Field(
        None, ge=2, description="of the design (left out: two for each coefficient, at most 4 (genes + 1))"
    )
    batch: int = Field(4, ge=1, description="points evaluated between two fits; the workers, where they are more")
    link: Literal["auto"] | LinkName | dict[str, LinkName] = Field(
        "auto", description="of all objectives or of each: identity, logit or softplus; auto goes by the values"
    )
    optimizer: OptimizerName = Field("nsga3", description="what finds the predicted front: nsga3 or nsga2")
    residuals: bool = Field(
        True,
        description="follow what quadratics miss where neighbours were missed too (kriging); false: as published",
    )
    confirm: int = Field(
        20,
        ge=0,
        description="points of the predicted front that are confirmed after the search, besides the trials' front; "
        f"it has at most {AMORTIZED}",
    )
    acquisition: Literal["improvement", "bins"] = Field(
        "improvement",
        description="of bayesian: expected hypervolume improvement, or the paper's bins of directions",
    )
    rounds: int = Field(2, ge=1, description="batches that bins choose, before the predicted front is evaluated")
    prefer: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        {}, description="of nested: how much each objective counts, 1 if left out"
    )

    @model_validator(mode="after")
    def _preference_is_needed(self) -> MapConfig:
        if self.prefer and self.variant != "nested":
            raise ValueError(
                "prefer is of variant: nested; others answer any preference after the run (front --prefer)"
            )
        return self


class MapSearcher:
    """Evaluates a design, then the predicted front, batch by batch."""

    def __init__(self, config: MapConfig, setting: Setting) -> None:
        _check(config, setting)
        self._config, self._objectives, self._box = config, setting.objectives, UnitBox(setting.genes)
        self._signs = np.array([1.0 if o.direction == "maximize" else -1.0 for o in setting.objectives])
        self._in_flight: InFlight[Prediction | None] = InFlight()
        dimensions = self._box.dimensions
        count = config.points or min(2 * terms_of(dimensions), 4 * (dimensions + 1))
        first = [{gene.name: point[gene.name] for gene in setting.genes} for point in setting.starting_points]
        rest = max(0, count - len(first))
        first += [self._box.genome(point) for point in design(config.design, rest, dimensions, config.seed)]
        self._queue: deque[tuple[dict[str, Value], Prediction | None]] = deque((genome, None) for genome in first)
        self._points: list[Array] = []
        self._values: list[tuple[float, ...]] = []
        self._errors: list[tuple[float, ...]] = []
        self._asked: set[tuple[Value, ...]] = set()
        self._front = np.empty((0, dimensions))
        self._batches = self._count = 0
        self._told: list[int] = []
        self._foretold: dict[int, Prediction] = {}

    def ask(self) -> dict[str, Value] | None:
        """Return the next point of the batch; None until a batch that is all asked is all told."""
        if not self._queue:
            if len(self._in_flight):
                return None
            self._queue.extend(self._next_batch())
        genome, prediction = self._queue.popleft()
        self._asked.add(tuple(genome.values()))
        return self._in_flight.asked(genome, prediction)

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        """Take in the result of the longest-asked genome."""
        prediction = self._in_flight.told(genome)
        values = objective_values(self._objectives, objectives)
        self._count += 1
        if values is None:
            return
        if prediction is not None:
            self._foretold[self._count - 1] = prediction
        self._told.append(self._count - 1)
        self._points.append(self._box.point(genome))
        self._values.append(values)
        self._errors.append(tuple((standard_errors or {}).get(o.name, 0.0) for o in self._objectives))

    def surrogates(self) -> list[Quadratic]:
        """Return the surrogate of each objective, fitted to all that was told; none before two results."""
        if len(self._values) < FEWEST:
            return []
        points, values, errors = np.array(self._points), np.array(self._values), np.array(self._errors)
        return [
            fit(points, values[:, column], self._link(objective, values[:, column]), errors[:, column])
            for column, objective in enumerate(self._objectives)
        ]

    def _corrected(self, surrogates: Sequence[Quadratic]) -> Sequence[Surrogate]:
        """Return the surrogates with what their residuals tell, if the config says so."""
        if not self._config.residuals:
            return surrogates
        points, values, errors = np.array(self._points), np.array(self._values), np.array(self._errors)
        return [
            corrected(surrogate, points, values[:, column], errors[:, column])
            for column, surrogate in enumerate(surrogates)
        ]

    def explanation(self) -> Explanation | None:
        """Return how good the surrogates are and the front that they predict; None before two results."""
        surrogates = self.surrogates()
        if not surrogates:
            return None
        front = self._predicted_front(surrogates, 0.0, AMORTIZED)
        predictions = self._predictions(surrogates, np.array(self._points))
        return Explanation(
            {
                o.name: facts_of(surrogate, len(self._points))
                for o, surrogate in zip(self._objectives, surrogates, strict=True)
            },
            self._predictions(surrogates, front),
            dict(zip(self._told, predictions, strict=True)),
            dict(self._foretold),
            self._worth_confirming(surrogates, front),
        )

    def _worth_confirming(self, surrogates: Sequence[Surrogate], front: Array) -> tuple[int, ...]:
        """Return the rows of a predicted front that the trials lack most, by what surrogates say of both."""
        best = nondominated(np.array(self._values) * self._signs)
        known = self._gains(surrogates, np.array(self._points)[best])
        fresh = self._fresh(front)
        means = self._gains(surrogates, front[fresh])
        rows = points_to_try(known, means, np.zeros_like(means), self._config.confirm, self._config.seed)
        return tuple(fresh[row] for row in rows)

    def _next_batch(self) -> list[tuple[dict[str, Value], Prediction | None]]:
        quadratics = self.surrogates()
        seed = (self._config.seed + 7919 * (self._batches + 1)) % 2**32
        self._batches += 1
        count = self._config.batch
        if not quadratics:
            return [(self._box.genome(point), None) for point in self._random(count, seed)]
        known = np.array(self._values) * self._signs
        bayesian, bins = self._config.variant == "bayesian", self._config.acquisition == "bins"
        if bayesian and bins and self._batches <= self._config.rounds:
            found = uncertain_points(np.array(self._points), np.array(self._values), quadratics, count, seed)
            return [(prediction.genome, prediction) for prediction in self._predictions(quadratics, found)]
        surrogates = self._corrected(quadratics)
        self._front = self._predicted_front(surrogates, 0.0)
        if bayesian and not bins:
            hopeful = self._predicted_front(surrogates, 1.0)
            candidates = np.concatenate([self._front, hopeful, self._random(ELSEWHERE, seed)])
            candidates = candidates[self._fresh(candidates)]
            errors = _uncertainties(surrogates, candidates)
        else:
            candidates = self._front[self._fresh(self._front)]
            errors = np.zeros((len(candidates), len(surrogates)))
        means = self._gains(surrogates, candidates)
        chosen = candidates[points_to_try(known, means, errors, count, seed)]
        if len(chosen) < count:
            chosen = np.concatenate([chosen, self._random(count - len(chosen), seed)])
        return [(prediction.genome, prediction) for prediction in self._predictions(surrogates, chosen)]

    def _predicted_front(self, surrogates: Sequence[Surrogate], optimism: float, population: int = POPULATION) -> Array:
        """Return the points of the front of gains plus so many of their standard deviations."""
        values = np.array(self._values) * self._signs
        best = np.array(self._points)[np.argsort(-values.sum(1), kind="stable")]

        def gains(points: Array) -> Array:
            found = self._gains(surrogates, points)
            return found + optimism * _uncertainties(surrogates, points) if optimism else found

        return predicted_front(
            gains,
            np.concatenate([self._front, best])[:POPULATION],
            len(self._objectives),
            optimizer=self._config.optimizer,
            population=population,
            generations=GENERATIONS,
            seed=self._config.seed,
            settle=self._settled,
        )

    def _gains(self, surrogates: Sequence[Surrogate], points: Array) -> Array:
        return np.stack([surrogate(points) for surrogate in surrogates], axis=1) * self._signs

    def _predictions(self, surrogates: Sequence[Surrogate], points: Array) -> list[Prediction]:
        names = [objective.name for objective in self._objectives]
        values = self._gains(surrogates, points) * self._signs
        errors = np.hypot(_uncertainties(surrogates, points), [surrogate.misfit for surrogate in surrogates])
        return [
            Prediction(
                self._box.genome(point),
                dict(zip(names, value.tolist(), strict=True)),
                dict(zip(names, error.tolist(), strict=True)),
            )
            for point, value, error in zip(points, values, errors, strict=True)
        ]

    def _link(self, objective: ObjectiveSpec, values: Array) -> LinkName:
        chosen = self._config.link
        named = chosen.get(objective.name) if isinstance(chosen, dict) else chosen
        return suited(values, objective.direction) if named is None or named == "auto" else named

    def _random(self, count: int, seed: int) -> Array:
        return self._settled(np.asarray(qmc.LatinHypercube(self._box.dimensions, seed=seed).random(count)))

    def _settled(self, points: Array) -> Array:
        """Return the points at the middles of integers' cells."""
        cells = self._box.cells
        counts = np.maximum(cells, 1)
        middles = (np.minimum(np.floor(points * counts), counts - 1) + 0.5) / counts
        return np.asarray(np.where(cells > 0, middles, points))

    def _fresh(self, points: Array) -> list[int]:
        """Return the rows of points whose genomes were not asked yet, each genome once."""
        seen = set(self._asked)
        kept: list[int] = []
        for row, point in enumerate(points):
            key = tuple(self._box.genome(point).values())
            if key not in seen:
                seen.add(key)
                kept.append(row)
        return kept


def _uncertainties(surrogates: Sequence[Surrogate], points: Array) -> Array:
    """Return the standard deviations of predictions, misfits apart, (points, objectives)."""
    return np.stack([surrogate.errors(points) for surrogate in surrogates], axis=1)


def _check(config: MapConfig, setting: Setting) -> None:
    problems = []
    names = {objective.name for objective in setting.objectives}
    for field in ("link", "prefer"):
        named = getattr(config, field)
        for name in named if isinstance(named, dict) else ():
            if name not in names:
                what = f"no objective is called {name!r}"
                problems.append(Problem(what, f"searcher.{field}", f"they are: {', '.join(sorted(names))}"))
    if problems:
        raise ConfigError(problems)


SEARCHERS.add(
    "map",
    SearcherEntry(
        config=MapConfig,
        build=MapSearcher,
        summary="the front from few trials: a quadratic surrogate of each objective, for a few continuous genes",
        paper="Li et al. 2025",
        multi_objective=True,
        needs_generations=True,
        weighs_errors=True,
    ),
    origin=__name__,
)
