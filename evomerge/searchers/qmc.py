"""Quasi-random search: a scrambled Sobol sequence, which fills the space more evenly than random points.

Sobol 1967, with Owen's 1998 scrambling in the linear form of Matousek 1998, from ``scipy.stats.qmc``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.stats import qmc

from evomerge.errors import ConfigError, Problem
from evomerge.search_spaces.genes import Genome, Value
from evomerge.searchers.base import SEARCHERS, SearcherConfig, SearcherEntry, Setting
from evomerge.searchers.box import UnitBox
from evomerge.searchers.results import InFlight, objective_values


class QmcConfig(SearcherConfig):
    """A scrambled Sobol sequence over the bounds; learns nothing from the results."""

    kind: Literal["qmc"] = Field("qmc", description="the searcher's name")


class QmcSearcher:
    """Proposes the points of a scrambled Sobol sequence, one after the other."""

    def __init__(self, config: QmcConfig, setting: Setting) -> None:
        self._box = UnitBox(setting.genes)
        self._objectives = setting.objectives
        if self._box.dimensions > qmc.Sobol.MAXDIM:
            what = f"Sobol sequences exist up to {qmc.Sobol.MAXDIM} genes (found {self._box.dimensions})"
            raise ConfigError(Problem(what, "searcher", "use fewer genes, or `searcher: random`"))
        generator = np.random.default_rng(config.seed)
        self._sequence = qmc.Sobol(self._box.dimensions, scramble=True, seed=generator)
        self._in_flight: InFlight[None] = InFlight()

    def ask(self) -> dict[str, Value]:
        """Return the genome at the sequence's next point."""
        return self._in_flight.asked(self._box.genome(self._sequence.random(1)[0]), None)

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        """Check the result and forget it."""
        self._in_flight.told(genome)
        objective_values(self._objectives, objectives)


SEARCHERS.add(
    "qmc",
    SearcherEntry(
        config=QmcConfig,
        build=QmcSearcher,
        summary="scrambled Sobol sequence: covers few genes more evenly than random",
        paper="Sobol 1967; Owen 1998",
        multi_objective=True,
        needs_generations=False,
        learns=False,
    ),
    origin=__name__,
)
