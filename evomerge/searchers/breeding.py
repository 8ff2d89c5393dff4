"""What searchers of a lineage space share: the parents come first, then children of living members.

A genome names its two sources: the number of a trial that was told, or a parent (-1 the first, -2 the second, …). A
parent that was evaluated as it is keeps that name, so its weights need not be kept a second time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from pydantic import Field

from evomerge.errors import ConfigError, Problem
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, Gene, Genome, IntGene, Value
from evomerge.searchers.base import SearcherConfig, Setting
from evomerge.searchers.results import InFlight, objective_values

FIRST, SECOND = "first", "second"
SCALE = "mutation.scale"

Role: TypeAlias = Literal["seed", "child", "aggregate"]


class LineageConfig(SearcherConfig):
    """Options of every searcher that crosses earlier trials."""

    mutation: float = Field(0.01, ge=0, le=1, description="mutation.scale of every child, if the space has a mutation")


class LineageGenes:
    """The genes of a lineage space, by what they are for.

    Args:
        genes: of the space.

    Attributes:
        parents: how many parents the experiment has.
        own: names of the genes of the crossover and of the mutation.

    Raises:
        ConfigError: they name no sources, or fewer than two parents.
    """

    def __init__(self, genes: Sequence[Gene]) -> None:
        self._genes = {gene.name: gene for gene in genes}
        sources = [self._genes.get(name) for name in (FIRST, SECOND)]
        lows = [gene.low for gene in sources if isinstance(gene, IntGene)]
        if len(lows) < len(sources):
            what = f"the search space has no genes {FIRST!r} and {SECOND!r}, which name the sources of a child"
            raise ConfigError(Problem(what, "search_space", "use a search space of kind lineage"))
        self.parents = -min(lows)
        if self.parents < 2:
            what = f"there are {max(self.parents, 0)} parents, and a crossover needs two"
            raise ConfigError(Problem(what, "parents", "name two or more"))
        self.own = tuple(name for name in self._genes if name not in (FIRST, SECOND))

    def genome(self, first: int, second: int, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return the genome of a child; genes without a value are at their initial, neutral ones."""
        found: dict[str, Value] = {name: gene.initial for name, gene in self._genes.items()}
        found |= {name: self._clipped(name, value) for name, value in values.items() if name in self._genes}
        return {**found, FIRST: first, SECOND: second}

    def uniform(self, generator: np.random.Generator) -> dict[str, Value]:
        """Return a value for each gene of crossover and mutation, drawn uniformly from its bounds."""
        return {name: _uniform(self._genes[name], generator) for name in self.own}

    def high(self, name: str) -> float:
        """Return the upper bound of a gene of numbers."""
        gene = self._genes[name]
        assert not isinstance(gene, ChoiceGene)
        return gene.high

    def _clipped(self, name: str, value: Value) -> Value:
        gene = self._genes[name]
        return value if isinstance(gene, ChoiceGene) else type(gene.low)(min(max(value, gene.low), gene.high))


class LineageSearcher(ABC):
    """Evaluates the parents, then proposes children of living members as soon as there is room for another trial.

    Args:
        config: the seed and the mutation's scale.
        setting: genes of a lineage space, and the objectives.
    """

    def __init__(self, config: LineageConfig, setting: Setting) -> None:
        self.genes = LineageGenes(setting.genes)
        self.objectives = setting.objectives
        self.generator = np.random.default_rng(config.seed)
        self.children = 0  # asked so far
        self._scale = config.mutation
        self._seeds = deque(range(-1, -self.genes.parents - 1, -1))
        self._in_flight: InFlight[Role] = InFlight()
        self._told = 0

    def ask(self) -> dict[str, Value] | None:
        """Return a parent as it is, then children; None while fewer than two members live and parents are in flight."""
        if self._seeds:
            parent = self._seeds.popleft()
            return self._in_flight.asked(self.genes.genome(parent, parent, {}), "seed")
        if (aggregate := self.aggregate()) is not None:
            return self._in_flight.asked(aggregate, "aggregate")
        sources = self.sources()
        if sources is None:
            if self._told < self.genes.parents:
                return None
            sources = self._two_parents()
        values = self.genes.uniform(self.generator) | {SCALE: self._scale, **self.crossing()}
        self.children += 1
        return self._in_flight.asked(self.genes.genome(*sources, values), "child")

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
        items: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Take in the result of the longest-asked genome."""
        role = self._in_flight.told(genome)
        number, self._told = self._told, self._told + 1
        values = objective_values(self.objectives, objectives)
        name = int(genome[FIRST]) if role == "seed" else number
        if values is not None:
            self.take(name, dict(zip((o.name for o in self.objectives), values, strict=True)), items)
        if role == "aggregate":
            self.aggregated(name if values is not None else None)

    @abstractmethod
    def sources(self) -> tuple[int, int] | None:
        """Return the names of two living members to cross; None if there are not two."""

    @abstractmethod
    def take(self, name: int, values: Mapping[str, float], items: Mapping[str, np.ndarray] | None) -> None:
        """Let a member that was evaluated live, or not; ``values`` are its objectives, in their order."""

    def crossing(self) -> Mapping[str, Value]:
        """Return the crossover's genes that are not to be uniform in their bounds."""
        return {}

    def aggregate(self) -> dict[str, Value] | None:
        """Return a genome that is due and no child like the others; None: none is."""
        return None

    def aggregated(self, name: int | None) -> None:
        """Take in what became of an aggregate: its name, or None if it failed."""
        raise NotImplementedError("a searcher that proposes aggregates learns what becomes of them")

    def _two_parents(self) -> tuple[int, int]:
        first = int(self.generator.integers(self.genes.parents))
        second = (first + 1 + int(self.generator.integers(self.genes.parents - 1))) % self.genes.parents
        return -1 - first, -1 - second


def _uniform(gene: Gene, generator: np.random.Generator) -> Value:
    if isinstance(gene, FloatGene):
        return gene.low + generator.random() * (gene.high - gene.low)
    if isinstance(gene, IntGene):
        return int(generator.integers(gene.low, gene.high, endpoint=True))
    return gene.choices[int(generator.integers(len(gene.choices)))]
