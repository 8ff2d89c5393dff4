"""Top-k greedy merging with model kinship: the best models are merged with each other, and the best with a stranger.

Hu et al. 2024, *Exploring Model Kinship for Merging Large Language Models* (https://arxiv.org/abs/2410.12613),
Algorithm 1. The first generation merges each two parents. Each further one merges each two of the k best models so far;
to leave local optima, it also merges the best of all with the model of lowest kinship to it. Nothing is merged twice.

The paper ends where the k best stay the same. Here the search goes on until the budget is spent: then each two of them
are merged again, at other weights.

A member's kinship follows from its shares of the parents: the child of two sources at weight t has (1 − t) times the
one's and t times the other's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.errors import ConfigError, Problem, RunError
from evomerge.kinship import kinship_to
from evomerge.search_spaces.genes import Genome, Value
from evomerge.searchers.base import SEARCHERS, SearcherConfig, SearcherEntry, Setting
from evomerge.searchers.breeding import LineageGenes
from evomerge.searchers.results import InFlight, objective_values, weighted_cost


class KinshipConfig(SearcherConfig):
    """Greedy merging of the best models, and of the best with its most distant kin."""

    kind: Literal["kinship"] = Field("kinship", description="the searcher's name")
    top: int = Field(3, ge=2, description="k: how many of the best models are merged with each other in a generation")
    weight: float = Field(0.5, gt=0, lt=1, description="share of the worse model in a merge of two")
    explore: int = Field(
        1, ge=0, description="merges of the best model with its most distant kin in a generation; 0: greedy alone"
    )
    partners: Literal["all", "previous"] = Field(
        "all", description="where the distant kin is looked for: among all models, or in the generation before"
    )
    metric: Literal["pcc", "cs", "ed"] = Field(
        "pcc", description="of kinship: Pearson correlation, cosine similarity or Euclidean distance of task vectors"
    )


@dataclass(frozen=True, eq=False)
class Member:
    """A model that may be a source.

    Attributes:
        source: the number of its trial; of a parent a negative one.
        shares: (parents,), how much of each parent's task vector is in its own.
        generation: that it was born in; parents are 0.
        cost: less is better.
    """

    source: int
    shares: np.ndarray
    generation: int
    cost: float


@dataclass(frozen=True, eq=False)
class Child:
    """A model to be asked or told: what it will be as a member, but for its cost.

    ``source`` is a parent's negative number; None of a child whose number is that of its trial.
    """

    shares: np.ndarray
    generation: int
    source: int | None = None


class KinshipSearcher:
    """Proposes a generation, waits for its results, and proposes the next from the best members so far.

    Raises:
        ConfigError: there are fewer than two parents, or children are not weighted sums of their sources.
    """

    def __init__(self, config: KinshipConfig, setting: Setting) -> None:
        if setting.between is None:
            what = "the searcher 'kinship' cannot tell the kinship of these children from that of their sources"
            hint = "use the crossover linear, task_arithmetic or slerp, without a mutation"
            raise ConfigError(Problem(what, "search_space", hint))
        self._config, self._between, self._kinship = config, setting.between, setting.kinship
        self._genes, self._objectives = LineageGenes(setting.genes), setting.objectives
        self._generator = np.random.default_rng(config.seed)
        self._in_flight: InFlight[Child] = InFlight()
        self._parents = np.eye(self._genes.parents)
        self._members: list[Member] = []
        self._merged: set[frozenset[int]] = set()
        self._told = 0
        self._generation = 0
        self._waiting: deque[tuple[dict[str, Value], Child]] = deque(self._seeds())

    def ask(self) -> dict[str, Value] | None:
        """Return the next child of the generation; None while results of this one are waited for."""
        if not self._waiting:
            if len(self._in_flight):
                return None
            self._generation += 1
            self._waiting.extend(self._first() if self._generation == 1 else self._next())
        return self._in_flight.asked(*self._waiting.popleft())

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        """Take a model that did not fail in among the members."""
        child = self._in_flight.told(genome)
        values = objective_values(self._objectives, objectives)
        if values is not None:
            source = self._told if child.source is None else child.source
            cost = weighted_cost(self._objectives, values)
            self._members.append(Member(source, child.shares, child.generation, cost))
        self._told += 1

    def _seeds(self) -> Iterator[tuple[dict[str, Value], Child]]:
        """Yield the parents as they are."""
        for number, shares in enumerate(self._parents, 1):
            yield self._genes.genome(-number, -number, {}), Child(shares, 0, -number)

    def _first(self) -> Iterator[tuple[dict[str, Value], Child]]:
        """Yield the first generation: each two parents that did not fail, or all of them if fewer than two are left."""
        found = self._ranked() if len(self._members) > 1 else self._sources()
        yield from (self._child(*pair, self._config.weight) for pair in combinations(found, 2))

    def _next(self) -> Iterator[tuple[dict[str, Value], Child]]:
        """Yield a further generation: new pairs of the best, or all of them again, and the best with distant kin."""
        best = self._ranked()[: self._config.top]
        pairs = list(combinations(best if len(best) > 1 else self._sources(), 2))
        new = [pair for pair in pairs if _names(*pair) not in self._merged]
        for pair in new or pairs:
            yield self._child(*pair, self._config.weight if new else float(self._generator.random()))
        for partner in self._distant(best[0]) if best else ():
            yield self._child(best[0], partner, self._config.weight)

    def _ranked(self) -> list[Member]:
        """Return the members, the best first; of equals the older."""
        return sorted(self._members, key=lambda member: member.cost)

    def _sources(self) -> list[Member]:
        """Return the parents, whether or not they failed."""
        return [Member(-number, shares, 0, np.inf) for number, shares in enumerate(self._parents, 1)]

    def _distant(self, best: Member) -> list[Member]:
        """Return the members of lowest kinship to the best one that it was not merged with yet."""
        among = [
            member
            for member in self._members
            if (self._config.partners == "all" or member.generation == self._generation - 1)
            and member is not best
            and _names(best, member) not in self._merged
        ]
        if not among or not self._config.explore:
            return []
        if self._kinship is None:
            raise RunError("the searcher 'kinship' was built without the kinship of the parents")
        found = kinship_to(self._kinship, self._config.metric, best.shares, _stacked(among))
        alike = np.nan_to_num(-found if self._config.metric == "ed" else found)  # no kinship: unrelated
        return [among[place] for place in np.argsort(alike, kind="stable")[: self._config.explore]]

    def _child(self, first: Member, second: Member, weight: float) -> tuple[dict[str, Value], Child]:
        self._merged.add(_names(first, second))
        genome = self._genes.genome(first.source, second.source, self._between(weight))
        return genome, Child((1 - weight) * first.shares + weight * second.shares, self._generation)


def _names(first: Member, second: Member) -> frozenset[int]:
    return frozenset((first.source, second.source))


def _stacked(members: Sequence[Member]) -> np.ndarray:
    return np.stack([member.shares for member in members])


SEARCHERS.add(
    "kinship",
    SearcherEntry(
        config=KinshipConfig,
        build=KinshipSearcher,
        summary="greedy merging of the best models, and of the best with its most distant kin",
        paper="Hu et al. 2024",
        multi_objective=False,
        needs_generations=True,
        lineage=True,
        kinship=True,
    ),
    origin=__name__,
)
