"""Grids of niches: archives that keep, in each cell of what members do, the one that does it best.

Mouret and Clune 2015, *Illuminating search spaces by mapping elites* (https://arxiv.org/abs/1504.04909). What members
do is here how well they do on objectives. Only cells that are filled take memory, so a grid may be as fine and have as
many axes as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.searchers.base import ObjectiveSpec
from evomerge.searchers.results import weighted_cost

Cell = tuple[int, ...]
ROUNDING = 1e-9  # niches from a border up to which a value lies on it: 0.1 + 0.2 counts as 0.3


class AxisConfig(BaseModel):
    """How an objective is cut into niches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float = Field(0.0, allow_inf_nan=False, description="the lowest value that is told apart")
    high: float = Field(1.0, allow_inf_nan=False, description="the highest value that is told apart")
    bins: int | None = Field(None, ge=1, le=1000, description="niches between them (left out: the searcher's bins)")

    @model_validator(mode="after")
    def _is_an_interval(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high (found {self.low:g} and {self.high:g})")
        return self


@dataclass(frozen=True)
class Axis:
    """An objective, cut into equal niches, numbered from the worst to the best.

    Attributes:
        objective: what lies along it.
        low: lower end of the first niche; what lies beyond an end counts to the niche at that end.
        high: upper end of the last niche.
        bins: how many niches.
        closed_above: whether a value on the border between two niches belongs to the worse one.
    """

    objective: ObjectiveSpec
    low: float
    high: float
    bins: int
    closed_above: bool = False

    def niche(self, value: float) -> int:
        """Return the number of a value's niche."""
        beyond_worst = value - self.low if self.objective.direction == "maximize" else self.high - value
        position = beyond_worst / (self.high - self.low) * self.bins
        border = round(position)
        found = border - self.closed_above if abs(position - border) <= ROUNDING else math.floor(position)
        return min(max(found, 0), self.bins - 1)


@dataclass(frozen=True)
class Elite:
    """The best known member of a niche: its name and what it is judged by, higher is better."""

    name: int
    quality: float


class GridArchive:
    """The elites of a grid.

    Args:
        axes: along which the grid lies.
        judges: the objectives whose weighted sum is a member's quality.

    Attributes:
        elites: cell → elite, in the order in which the cells were filled.
    """

    def __init__(self, axes: Sequence[Axis], judges: Sequence[ObjectiveSpec]) -> None:
        self.axes, self._judges = tuple(axes), tuple(judges)
        self.elites: dict[Cell, Elite] = {}

    def add(self, name: int, values: Mapping[str, float]) -> bool:
        """Let a member into its cell if that is empty or its elite is worse, and return whether it is in.

        Args:
            name: of the member.
            values: objective → value.
        """
        quality = -weighted_cost(self._judges, [values[objective.name] for objective in self._judges])
        cell = tuple(axis.niche(values[axis.objective.name]) for axis in self.axes)
        if cell in self.elites and not quality > self.elites[cell].quality:
            return False
        self.elites[cell] = Elite(name, quality)
        return True

    @property
    def cells(self) -> int:
        """How many cells the grid has."""
        return math.prod(axis.bins for axis in self.axes)

    @property
    def coverage(self) -> float:
        """Share of the cells that are filled."""
        return len(self.elites) / self.cells

    @property
    def best(self) -> Elite | None:
        """The elite of highest quality, the earliest of several; None of an empty archive."""
        return max(self.elites.values(), key=lambda elite: elite.quality, default=None)

    @property
    def qd_score(self) -> float:
        """The sum of the elites' qualities: how much of the grid is filled, and how well."""
        return math.fsum(elite.quality for elite in self.elites.values())


def axes_of(
    objectives: Iterable[ObjectiveSpec], grid: Mapping[str, AxisConfig], bins: int, *, closed_above: bool = False
) -> tuple[Axis, ...]:
    """Return an axis for each objective.

    Args:
        objectives: in their order.
        grid: objective → its ends and niches; [0, 1] for objectives that are left out.
        bins: niches of objectives for which the grid does not say.
        closed_above: as in `Axis`.

    Raises:
        ConfigError: the grid names something that is no objective.
    """
    objectives = tuple(objectives)
    names = [objective.name for objective in objectives]
    if unknown := [name for name in grid if name not in names]:
        problems = [
            Problem(f"{name!r} is no objective", f"searcher.grid.{name}", suggest(name, names)) for name in unknown
        ]
        raise ConfigError(problems)
    found = [(objective, grid.get(objective.name, AxisConfig())) for objective in objectives]  # type: ignore[call-arg]
    return tuple(Axis(objective, axis.low, axis.high, axis.bins or bins, closed_above) for objective, axis in found)
