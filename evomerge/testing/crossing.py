"""A searcher of lineage that learns little: random crossings of parents and told trials, for tests of what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.errors import RunError
from evomerge.search_spaces.genes import FloatGene, Genome, IntGene, Value
from evomerge.search_spaces.lineage import SOURCES
from evomerge.searchers.base import SEARCHERS, SearcherConfig, SearcherEntry, Setting
from evomerge.searchers.results import InFlight, objective_values


class CrossingConfig(SearcherConfig):
    """Seed members first, then random children of those that are told."""

    kind: Literal["test-crossing"] = Field("test-crossing", description="the searcher's name")
    recent: int = Field(6, ge=1, description="trials that may be crossed: the last ones that did not fail")


class CrossingSearcher:
    """Proposes children of two sources that it draws; one that solved more items is drawn as the first source."""

    def __init__(self, config: CrossingConfig, setting: Setting) -> None:
        self._config, self._setting = config, setting
        self._generator = np.random.default_rng(config.seed)
        self._in_flight: InFlight[None] = InFlight()
        self._seeds = list(range(1, len(setting.parents) + 1))
        self._told, self._alive = 0, dict[int, float]()

    def ask(self) -> dict[str, Value]:
        """Return a parent as it is, as long as there are some, then a child of two random sources."""
        genome: dict[str, Value] = {gene.name: gene.initial for gene in self._setting.genes}
        if self._seeds:
            genome |= dict.fromkeys(SOURCES, -self._seeds.pop(0))
            return self._in_flight.asked(genome, None)
        known = [*range(-len(self._setting.parents), 0), *list(self._alive)[-self._config.recent :]]
        drawn = [known[int(n)] for n in self._generator.integers(len(known), size=2)]
        drawn.sort(key=lambda number: -self._alive.get(number, 0.0))
        genome |= dict(zip(SOURCES, drawn, strict=True))
        for gene in self._setting.genes:
            if isinstance(gene, FloatGene):  # mostly small: much noise would leave nothing to inherit
                genome[gene.name] = gene.low + float(self._generator.random() ** 4) * (gene.high - gene.low)
            elif isinstance(gene, IntGene) and gene.name not in SOURCES:
                genome[gene.name] = int(self._generator.integers(gene.low, gene.high, endpoint=True))
        return self._in_flight.asked(genome, None)

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
        items: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Let the trial be crossed from now on, unless it failed."""
        self._in_flight.told(genome)
        if objective_values(self._setting.objectives, objectives) is not None:
            if items is None or set(items) != {objective.name for objective in self._setting.objectives}:
                raise RunError("the scores of the items were not told")
            self._alive[self._told] = float(sum(scores.sum() for scores in items.values()))
        self._told += 1


SEARCHERS.add(
    "test-crossing",
    SearcherEntry(
        config=CrossingConfig,
        build=CrossingSearcher,
        summary="random crossings, for tests",
        paper="",
        multi_objective=True,
        needs_generations=False,
        per_item=True,
        lineage=True,
    ),
    origin=__name__,
)
