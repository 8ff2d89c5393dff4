"""CMA-ES: adapts a normal distribution over the genes towards the best weighted sum of the objectives.

Hansen 2016, *The CMA Evolution Strategy: A Tutorial* (arXiv:1604.00772); reference implementation and engine:
pycma. The restarts are ours, since pycma's own (``fmin2``) are not ask and tell.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.search_spaces.genes import Genome, Value
from evomerge.searchers.base import SEARCHERS, SearcherConfig, SearcherEntry, Setting
from evomerge.searchers.box import UnitBox
from evomerge.searchers.cma_restarts import SCHEDULES
from evomerge.searchers.pycma import CMAAdaptSigmaCSA, cma
from evomerge.searchers.results import InFlight, objective_values, weighted_cost

# Scores on few items are coarse, so that many of a generation tie; pycma's default would restart at the
# second tie.
FLAT_GENERATIONS = 20


class CmaEsConfig(SearcherConfig):
    """Options of CMA-ES. Several objectives are added up, each times its weight, signed by direction."""

    kind: Literal["cma-es"] = Field("cma-es", description="the searcher's name")
    population: int | None = Field(None, ge=4, description="genomes in a generation (left out: 4 + 3 ln n for n genes)")
    sigma0: float = Field(
        0.25, gt=0, le=1, allow_inf_nan=False, description="first step size, as a share of each gene's range"
    )
    restarts: Literal["ipop", "bipop", "none"] = Field(
        "ipop", description="after convergence: with doubled, or with large and small populations"
    )
    diagonal: bool = Field(False, description="adapt variances only (sep-CMA-ES): for thousands of genes")


class CmaEsSearcher:
    """CMA-ES with restarts, one generation open at a time."""

    def __init__(self, config: CmaEsConfig, setting: Setting) -> None:
        self._config = config
        self._objectives = setting.objectives
        self._box = UnitBox(setting.genes)
        # pycma cannot limit the step size of a lone coordinate, so that one gets an idle companion.
        self._cells = self._box.cells if self._box.dimensions > 1 else np.append(self._box.cells, 0)
        # pycma rounds integer coordinates, so these run over [-½, cells - ½], their values being the cells'
        # numbers.
        self._scale = np.maximum(self._cells, 1).astype(np.float64)
        self._offset = np.where(self._cells > 0, 0.5, 0.0)
        initial = {gene.name: gene.initial for gene in setting.genes}
        self._starts = deque(self._box.point(point) for point in setting.starting_points or (initial,))
        self._generator = np.random.default_rng(config.seed)
        population = config.population or 4 + int(3 * math.log(self._box.dimensions))
        self._schedule = SCHEDULES[config.restarts](population, self._generator)
        self._launch = next(self._schedule)
        self._in_flight: InFlight[None] = InFlight()
        self._worst: float | None = None
        self._spent = 0
        self._converged = False
        self._start()

    def ask(self) -> dict[str, Value] | None:
        """Return the open generation's next genome; ``None`` when all of it is in flight."""
        if len(self._costs) + len(self._in_flight) == len(self._points):
            return None
        point = (self._points[len(self._costs) + len(self._in_flight)] + self._offset) / self._scale
        return self._in_flight.asked(self._box.genome(point[: self._box.dimensions]), None)

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        """Learn the result of the longest-asked genome; a generation's last result moves the distribution."""
        self._in_flight.told(genome)
        values = objective_values(self._objectives, objectives)
        self._costs.append(None if values is None else weighted_cost(self._objectives, values))
        if len(self._costs) == len(self._points):
            self._close_generation()

    def _close_generation(self) -> None:
        self._spent += len(self._points)
        if not self._converged:
            self._strategy.tell(self._points, self._imputed(self._costs))
            self._converged = bool(self._strategy.stop()) or self._spent >= self._launch.evaluations
        if self._converged:
            self._restart()
        else:
            self._open_generation()

    def _imputed(self, costs: Sequence[float | None]) -> list[float]:
        """Return the costs with each failed trial given the worst cost seen so far in the search."""
        known = [cost for cost in (self._worst, *costs) if cost is not None]
        self._worst = max(known, default=None)
        return [cost if cost is not None else self._worst or 0.0 for cost in costs]

    def _restart(self) -> None:
        try:
            self._launch = self._schedule.send(self._spent)
        except StopIteration:
            # Without restarts the final distribution is sampled on; telling it more would only shrink it to a
            # point.
            self._open_generation()
            return
        self._start()

    def _start(self) -> None:
        """Launch a strategy at the next starting point, or anywhere in the bounds when all are used."""
        point = self._starts.popleft() if self._starts else self._generator.random(self._box.dimensions)
        sigma = self._config.sigma0 * self._launch.sigma_factor
        point = np.append(point, np.full(len(self._scale) - len(point), 0.5))
        self._strategy = cma.CMAEvolutionStrategy(point * self._scale - self._offset, sigma, self._options())
        # Integer centering draws from the global numpy generator (T7) and adds little to the lower bound on
        # the integers' step sizes, which stays.
        self._strategy.integer_centering = lambda solutions, mean: solutions
        self._spent = 0
        self._converged = False
        self._open_generation()

    def _open_generation(self) -> None:
        self._points: list[NDArray[np.float64]] = self._strategy.ask()
        self._costs: list[float | None] = []

    def _options(self) -> dict[str, Any]:
        integers = np.flatnonzero(self._cells).tolist()
        return {
            "popsize": self._launch.population,
            "bounds": [(-self._offset).tolist(), (self._scale - self._offset).tolist()],
            # pycma's penalty on points outside fails when a first generation scores all the same.
            "BoundaryHandler": cma.BoundTransform,
            "CMA_stds": self._scale.tolist(),
            "CMA_diagonal": self._config.diagonal,
            "integer_variables": integers,
            "randn": lambda *shape: self._generator.standard_normal(shape),
            # The default from 300 dimensions on, two-point adaptation, checks itself with global random
            # numbers.
            "AdaptSigma": CMAAdaptSigmaCSA,
            "tolflatfitness": FLAT_GENERATIONS,
            "signals_filename": "",
            "verbose": -9,
            "verb_log": 0,
        }


SEARCHERS.add(
    "cma-es",
    SearcherEntry(
        config=CmaEsConfig,
        build=CmaEsSearcher,
        summary="normal distribution that adapts: best for one (weighted) objective over continuous genes",
        paper="Hansen 2016; Auger and Hansen 2005 (IPOP); Hansen 2009 (BIPOP)",
        multi_objective=False,
        needs_generations=True,
    ),
    origin=__name__,
)
