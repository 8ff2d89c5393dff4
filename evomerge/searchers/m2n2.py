"""M2N2: a small archive of models that compete for the items they solve, and are drawn to what the others solve.

Abrantes, Lange and Tang 2025, *Competition and Attraction Improve Model Fusion* (https://arxiv.org/abs/2508.16204). A
new child enters the archive, and the member that gains least leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.errors import RunError
from evomerge.search_spaces.genes import Value
from evomerge.searchers.base import SEARCHERS, ObjectiveSpec, SearcherEntry, Setting
from evomerge.searchers.breeding import LineageConfig, LineageSearcher
from evomerge.searchers.fitness_sharing import Array, attraction, gains, weakest
from evomerge.searchers.sampling import drawn, drawn_other

SPLIT = "split"


class M2n2Config(LineageConfig):
    """Options of M2N2. The first trials are the parents. With all switches off it is a plain genetic algorithm."""

    kind: Literal["m2n2"] = Field("m2n2", description="the searcher's name")
    archive: int = Field(20, ge=2, description="members that live at once")
    alpha: float = Field(1.0, ge=0, description="how strongly members compete for an item; 0: not at all")
    capacity: Literal["equal", "best"] = Field(
        "equal", description="what an item has to give: the same, or the best score of a living member"
    )
    competition: bool = Field(True, description="members share what an item gives; false: alpha 0")
    attraction: bool = Field(True, description="the second source is drawn by what it adds to the first")
    split: bool = Field(True, description="shares are swapped at a split point; false: one share for the whole model")


class M2n2Searcher(LineageSearcher):
    """Crosses members of an archive whose fitness is shared item by item.

    Attributes:
        members: names of the living members: of a trial its number, of a parent a negative one.
        scores: (members, items) float64.
    """

    def __init__(self, config: M2n2Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self._config = config
        self._alpha = config.alpha if config.competition else 0.0
        self._shares = np.empty(0)  # of the items, by their objectives
        self.members: list[int] = []
        self.scores: Array = np.empty((0, 0))

    def sources(self) -> tuple[int, int] | None:
        """Return two members: by what they gain, the second by what it adds to the first."""
        if len(self.members) < 2:
            return None
        gained = self._gains(self.scores)
        fitness = gained.sum(axis=1)
        first = drawn(self.generator, fitness)
        weights = attraction(gained, first) if self._config.attraction else fitness
        return self.members[first], self.members[drawn_other(self.generator, weights, first)]

    def take(self, name: int, values: Mapping[str, float], items: Mapping[str, np.ndarray] | None) -> None:
        """Let the member live while there is room, or in place of the one that gains least with it there."""
        row = self._row(items)
        extended = np.concatenate([self.scores.reshape(-1, len(row)), row[None]])
        if len(self.members) < self._config.archive:
            self.members.append(name)
            self.scores = extended
            return
        leaving = weakest(self._gains(extended))
        if leaving < len(self.members):
            self.members[leaving] = name
            self.scores[leaving] = row

    def crossing(self) -> Mapping[str, Value]:
        """Return the split at the end, if there is to be none."""
        return {} if self._config.split or SPLIT not in self.genes.own else {SPLIT: self.genes.high(SPLIT)}

    def _gains(self, scores: Array) -> Array:
        """Return what members gain; of an item with scores below 0, by how far they are above the worst one."""
        scores = scores - np.minimum(scores.min(axis=0), 0.0)
        capacities = scores.max(axis=0) if self._config.capacity == "best" else 1.0
        return gains(scores, self._alpha, capacities * self._shares)

    def _row(self, items: Mapping[str, np.ndarray] | None) -> Array:
        """Return the scores on all items, objective after objective."""
        if items is None:
            raise RunError("m2n2 learns from each item's score, and none were told")
        scores = [np.asarray(items[o.name], dtype=np.float64) for o in self.objectives]
        if not len(self._shares):
            self._shares = item_shares(self.objectives, [len(found) for found in scores])
        return np.concatenate(scores)


def item_shares(objectives: Sequence[ObjectiveSpec], counts: Sequence[int]) -> Array:
    """Return what each item counts: so much that objectives count by their weights, not by their numbers of items."""
    most = max(counts)
    return np.concatenate(
        [
            np.full(count, objective.weight * most / max(count, 1))
            for objective, count in zip(objectives, counts, strict=True)
        ]
    )


SEARCHERS.add(
    "m2n2",
    SearcherEntry(
        config=M2n2Config,
        build=M2n2Searcher,
        summary="models crossed from earlier ones, which compete for items and attract by what they add",
        paper="Abrantes et al. 2025",
        multi_objective=False,
        needs_generations=False,
        per_item=True,
        lineage=True,
    ),
    origin=__name__,
)
