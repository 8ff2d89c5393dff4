"""MAP-Elites over models: the best child in each niche of what children do, crossed with each other.

Mouret and Clune 2015, *Illuminating search spaces by mapping elites* (https://arxiv.org/abs/1504.04909), with models
crossed as in Abrantes et al. 2025 (https://arxiv.org/abs/2508.16204), who compare M2N2 with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.searchers.base import SEARCHERS, ObjectiveSpec, SearcherEntry, Setting
from evomerge.searchers.breeding import LineageConfig, LineageSearcher
from evomerge.searchers.grids import Axis, AxisConfig, GridArchive, axes_of
from evomerge.searchers.results import weighted_cost
from evomerge.searchers.sampling import drawn, drawn_other

QUALITY = "quality"


class MapElitesConfig(LineageConfig):
    """Options of MAP-Elites. The first trials are the parents; niches lie along the objectives."""

    kind: Literal["map-elites"] = Field("map-elites", description="the searcher's name")
    bins: int = Field(10, ge=1, le=1000, description="niches of each objective")
    grid: dict[str, AxisConfig] = Field({}, description="{objective: {low, high, bins}}, where not 0, 1 and bins")
    sampling: Literal["uniform", "quality"] = Field(
        "uniform",
        description="elites are crossed alike, or in proportion to their quality (Abrantes et al.), counted from 0, or "
        "from an end of the grid where that is worse",
    )


class MapElitesSearcher(LineageSearcher):
    """Crosses elites of one grid; their quality is the weighted sum of the objectives.

    Attributes:
        archives: the only one, under "quality".
    """

    def __init__(self, config: MapElitesConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self._by_quality = config.sampling == "quality"
        self.archives = archives_of(config, setting.objectives)
        self._nothing = _quality_of_nothing(self.archives[QUALITY].axes)

    def sources(self) -> tuple[int, int] | None:
        """Return two elites."""
        elites = list(self.archives[QUALITY].elites.values())
        if len(elites) < 2:
            return None
        qualities = np.array([max(elite.quality - self._nothing, 0.0) for elite in elites])
        weights = qualities if self._by_quality else np.ones(len(elites))
        first = drawn(self.generator, weights)
        return elites[first].name, elites[drawn_other(self.generator, weights, first)].name

    def take(self, name: int, values: Mapping[str, float], items: Mapping[str, np.ndarray] | None) -> None:
        """Let the member into its niche if it is the best there."""
        self.archives[QUALITY].add(name, values)


def _quality_of_nothing(axes: Sequence[Axis]) -> float:
    """Return the quality that counts as none: of 0 in each objective, or of an end of the grid that is worse."""
    ends = [min(axis.low, 0.0) if axis.objective.direction == "maximize" else max(axis.high, 0.0) for axis in axes]
    return -weighted_cost([axis.objective for axis in axes], ends)


def archives_of(config: MapElitesConfig, objectives: Sequence[ObjectiveSpec]) -> dict[str, GridArchive]:
    """Return the empty archive, under "quality".

    Raises:
        ConfigError: the grid names something that is no objective.
    """
    return {QUALITY: GridArchive(axes_of(objectives, config.grid, config.bins), objectives)}


SEARCHERS.add(
    "map-elites",
    SearcherEntry(
        config=MapElitesConfig,
        build=MapElitesSearcher,
        summary="models crossed from earlier ones, the best in each niche of the objectives",
        paper="Mouret and Clune 2015",
        multi_objective=False,
        needs_generations=False,
        lineage=True,
    ),
    origin=__name__,
)
