"""The front that surrogates predict, by NSGA-II or NSGA-III over the surrogates (engine: pymoo)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.problem import Problem
from pymoo.optimize import minimize
from pymoo.util.ref_dirs import get_reference_directions

from evomerge.searchers.surrogates.links import Array

OptimizerName: TypeAlias = Literal["nsga2", "nsga3"]


def predicted_front(
    gains: Callable[[Array], Array],
    start: Array,
    objectives: int,
    *,
    optimizer: OptimizerName,
    population: int,
    generations: int,
    seed: int,
    settle: Callable[[Array], Array] = lambda points: points,
) -> Array:
    """Return different points (rows, d) of the unit box whose predictions none of them dominates.

    Args:
        gains: predicted objectives (rows, objectives) of points (rows, d), larger better.
        start: points (any, d) to begin with; the population is filled up by random ones.
        objectives: how many.
        optimizer: ``nsga3`` spreads the front along reference directions (MAP's choice), ``nsga2`` by crowding.
        population: points of a generation.
        generations: of the optimizer.
        seed: of its randomness.
        settle: moves points to where genes can be, such as the middles of choices.
    """
    dimensions = start.shape[1]
    filled = np.random.default_rng(seed).random((max(0, population - len(start)), dimensions))
    first = np.concatenate([start[:population], filled])
    found = minimize(
        _Surrogates(lambda points: gains(settle(points)), dimensions, objectives),
        _algorithm(optimizer, objectives, population, first),
        ("n_gen", generations),
        seed=seed,
    )
    return np.unique(settle(np.atleast_2d(np.asarray(found.X, dtype=np.float64))), axis=0)


def _algorithm(optimizer: OptimizerName, objectives: int, population: int, first: Array) -> GeneticAlgorithm:
    if optimizer == "nsga2" or objectives == 1:
        return NSGA2(pop_size=population, sampling=first, eliminate_duplicates=False)
    return NSGA3(_directions(objectives, population), pop_size=population, sampling=first, eliminate_duplicates=False)


def _directions(objectives: int, count: int) -> Array:
    """Return as fine a lattice of directions (Das and Dennis 1998) as has at most ``count`` of them."""
    partitions = 1
    while math.comb(partitions + objectives, objectives - 1) <= count:
        partitions += 1
    return np.asarray(get_reference_directions("das-dennis", objectives, n_partitions=partitions))


class _Surrogates(Problem):
    def __init__(self, gains: Callable[[Array], Array], dimensions: int, objectives: int) -> None:
        super().__init__(n_var=dimensions, n_obj=objectives, xl=0.0, xu=1.0)
        self._gains = gains

    def _evaluate(self, x: NDArray[np.float64], out: dict[str, Any], *_: Any, **__: Any) -> None:
        out["F"] = -self._gains(x)
