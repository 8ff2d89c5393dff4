"""Random search: the baseline that every other searcher has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.search_spaces.genes import Genome, Value
from evomerge.searchers.base import SEARCHERS, SearcherConfig, SearcherEntry, Setting
from evomerge.searchers.box import UnitBox
from evomerge.searchers.results import InFlight, objective_values


class RandomConfig(SearcherConfig):
    """Independent genomes, uniform in the bounds; learns nothing from the results."""

    kind: Literal["random"] = Field("random", description="the searcher's name")


class RandomSearcher:
    """Proposes independent uniform genomes."""

    def __init__(self, config: RandomConfig, setting: Setting) -> None:
        self._box = UnitBox(setting.genes)
        self._objectives = setting.objectives
        self._generator = np.random.default_rng(config.seed)
        self._in_flight: InFlight[None] = InFlight()

    def ask(self) -> dict[str, Value]:
        """Return a genome drawn uniformly from the bounds."""
        return self._in_flight.asked(self._box.genome(self._generator.random(self._box.dimensions)), None)

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
    "random",
    SearcherEntry(
        config=RandomConfig,
        build=RandomSearcher,
        summary="independent uniform genomes: the baseline",
        paper="",
        multi_objective=True,
        needs_generations=False,
        learns=False,
    ),
    origin=__name__,
)
