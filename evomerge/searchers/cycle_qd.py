"""CycleQD: an archive for each objective, whose niches lie along the others; the archives breed by turns.

Kuroki, Nakamura, Akiba and Tang 2025, *Agent Skill Acquisition for Large Language Models via CycleQD*
(https://arxiv.org/abs/2410.14735).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.errors import ConfigError, Problem
from evomerge.search_spaces.genes import Value
from evomerge.searchers.base import SEARCHERS, ObjectiveSpec, SearcherEntry, Setting
from evomerge.searchers.breeding import LineageConfig, LineageSearcher
from evomerge.searchers.fitness_sharing import Array
from evomerge.searchers.grids import AxisConfig, Elite, GridArchive, axes_of
from evomerge.searchers.sampling import drawn, drawn_other

LOWEST, SPAN = 0.5, 0.8  # of each factor of elite sampling, as the authors' code has them: from 0.5 to 1.3
WEIGHTS = ("first.weight", "second.weight")


class CycleQdConfig(LineageConfig):
    """Options of CycleQD. The first trials are the parents; it takes two or more objectives."""

    kind: Literal["cycle-qd"] = Field("cycle-qd", description="the searcher's name")
    bins: int = Field(15, ge=1, le=1000, description="niches of each objective")
    grid: dict[str, AxisConfig] = Field({}, description="{objective: {low, high, bins}}, where not 0, 1 and bins")
    swap: int = Field(1, ge=1, description="children from one archive before it is the next one's turn")
    sampling: Literal["elite", "random"] = Field(
        "elite", description="elites are drawn by how good they are at all objectives, or all alike"
    )
    spread: float = Field(0.01, ge=0, le=0.2, description="standard deviation of the sources' weights around 1")
    mutation: float = Field(0.1, ge=0, le=1, description="mutation.scale of every child, if the space has a mutation")
    aggregate: int = Field(
        50, ge=0, description="children between two merges of the archives' best into one model; 0: none"
    )


class CycleQdSearcher(LineageSearcher):
    """Crosses elites of one archive after the other.

    Attributes:
        archives: objective → its archive.
    """

    def __init__(self, config: CycleQdConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self._config = config
        self.archives = archives_of(config, setting.objectives)
        missing = [name for name in WEIGHTS if name not in self.genes.own]
        if config.aggregate and missing:
            what = f"the crossover has no gene {missing[0]!r}, by which the archives' best would be merged"
            raise ConfigError(Problem(what, "searcher.aggregate", "use the crossover cycle-qd, or set aggregate: 0"))
        self._due = config.aggregate
        self._waiting: deque[tuple[int, float]] = deque()  # what is still to be merged: names and shares
        self._merged: tuple[int, float] | None = None  # what is merged so far; None while that is in flight
        self._share = 0.0  # of what is in flight

    def sources(self) -> tuple[int, int] | None:
        """Return two elites of the archive whose turn it is; of all archives where it has one alone."""
        archives = list(self.archives.values())
        turn = archives[self.children // self._config.swap % len(archives)]
        if len(turn.elites) < 2:
            names = sorted({elite.name for archive in archives for elite in archive.elites.values()})
            weights = np.ones(len(names))
        else:
            names = [elite.name for elite in turn.elites.values()]
            weights = elite_weights(turn) if self._config.sampling == "elite" else np.ones(len(names))
        if len(names) < 2:
            return None
        first = drawn(self.generator, weights)
        return names[first], names[drawn_other(self.generator, weights, first)]

    def take(self, name: int, values: Mapping[str, float], items: Mapping[str, np.ndarray] | None) -> None:
        """Let the member into each archive in whose niche it is the best."""
        for archive in self.archives.values():
            archive.add(name, values)

    def crossing(self) -> Mapping[str, Value]:
        """Return weights near 1, which the crossover divides by their sum."""
        drawn = 1.0 + self._config.spread * self.generator.standard_normal(len(WEIGHTS))
        return dict(zip(WEIGHTS, drawn.tolist(), strict=True))

    def aggregate(self) -> dict[str, Value] | None:
        """Return the next step of merging the archives' best, two at a time, when it is due."""
        if self._due and self.children >= self._due and not self._waiting and self._merged is None and not self._share:
            self._due = self.children + self._config.aggregate
            self._waiting.extend(shares_of_best(self.archives).items())
            if len(self._waiting) < 2:
                self._waiting.clear()
                return None
            self._merged = self._waiting.popleft()
        if self._merged is None or not self._waiting:
            return None
        (first, share), (second, other) = self._merged, self._waiting.popleft()
        self._merged, self._share = None, share + other
        return self.genes.genome(first, second, dict(zip(WEIGHTS, (share, other), strict=True)))

    def aggregated(self, name: int | None) -> None:
        """Go on from what is merged so far; give up if it failed."""
        share, self._share = self._share, 0.0
        if name is None:
            self._waiting.clear()
        elif self._waiting:
            self._merged = name, share


def archives_of(config: CycleQdConfig, objectives: Sequence[ObjectiveSpec]) -> dict[str, GridArchive]:
    """Return objective → its empty archive, whose axes are the other objectives.

    Raises:
        ConfigError: there is one objective only, or the grid names something that is no objective.
    """
    if len(objectives) < 2:
        what = "CycleQD needs two or more objectives: niches of each lie along the others"
        raise ConfigError(Problem(what, "objectives", "name more, or use map-elites or m2n2"))
    axes = axes_of(objectives, config.grid, config.bins, closed_above=True)
    return {
        objective.name: GridArchive(
            [axis for axis in axes if axis.objective != objective], [replace(objective, weight=1.0)]
        )
        for objective in objectives
    }


def elite_weights(archive: GridArchive) -> Array:
    """Return how likely each elite is to be drawn: by its quality, and by its niche along each axis.

    Each of these is brought to the same range over the elites, and they are multiplied.
    """
    weights = normalised(np.array([elite.quality for elite in archive.elites.values()]))
    for niches in np.array(list(archive.elites), dtype=np.float64).T:
        weights = weights * normalised(niches)
    return weights


def normalised(values: Array) -> Array:
    """Return values moved and scaled so that the worst is 0.5 and the best 1.3; ones if all are equal."""
    low, high = values.min(), values.max()
    return np.ones_like(values) if low == high else LOWEST + (values - low) * (SPAN / (high - low))


def shares_of_best(archives: Mapping[str, GridArchive]) -> dict[int, float]:
    """Return name → share of each archive's best elite in their final merge: the softmax of their qualities."""
    best: list[Elite] = [elite for archive in archives.values() if (elite := archive.best) is not None]
    if not best:
        return {}
    qualities = np.array([elite.quality for elite in best])
    powers = np.exp(qualities - qualities.max())
    shares: dict[int, float] = {}
    for elite, share in zip(best, (powers / powers.sum()).tolist(), strict=True):
        shares[elite.name] = shares.get(elite.name, 0.0) + share
    return shares


SEARCHERS.add(
    "cycle-qd",
    SearcherEntry(
        config=CycleQdConfig,
        build=CycleQdSearcher,
        summary="models crossed from earlier ones, the best at each objective in each niche of the others",
        paper="Kuroki et al. 2025",
        multi_objective=True,
        needs_generations=False,
        lineage=True,
    ),
    origin=__name__,
)
