"""What a comparison of searchers is shown from: frozen records, filled by ``evomerge.experiments.compare``.

A run's **value** is the hypervolume of its front so far, or, with one objective, the best value so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evomerge.reports.summary import ObjectiveInfo

Cost = Literal["trials", "items"]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some runs' values."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class RunCurve:
    """One run, as far as it is compared.

    Attributes:
        folder: the run's.
        seed: the searcher's.
        trials: how many are compared.
        items: how many item evaluations these took, those of calibration included.
        spent: what had been spent each time that the value changed, in the unit of the comparison.
        values: the value from then on.
        front: its non-dominated trials' objectives, in the order of the objectives.
        confirmed: the value of the whole run's front on the confirmation items; None where it is not compared.
    """

    folder: str
    seed: int
    trials: int
    items: int
    spent: tuple[int, ...]
    values: tuple[float, ...]
    front: tuple[tuple[float, ...], ...]
    confirmed: float | None = None


@dataclass(frozen=True)
class Band:
    """Quartiles over a group's runs as steps: ``median[i]`` holds from ``spent[i]`` on."""

    spent: tuple[int, ...]
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Group:
    """Runs of one searcher with different seeds.

    Attributes:
        label: what the group is called.
        runs: at least one.
        at: the runs' values at each checkpoint; None where some run had no value yet.
        band: the runs' values at all times.
        confirmed: the values on the confirmation items; None where they are not compared.
        surface: with two objectives, the corners of the median attainment surface, the best of the first objective
            last: what half of the runs reach.
    """

    label: str
    runs: tuple[RunCurve, ...]
    at: tuple[Spread | None, ...]
    band: Band
    confirmed: Spread | None = None
    surface: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two groups' values at the end.

    Attributes:
        better: label of the group with the better median.
        other: label of the other one.
        effect: Vargha and Delaney's A12: how often a run of ``better`` beats one of ``other``; a tie counts half.
        p_value: two-sided, corrected for the number of pairs; None where the runs are too few.
        uncorrected: before the correction.
        smallest: the smallest ``p_value`` that so many runs and pairs can give.
    """

    better: str
    other: str
    effect: float
    p_value: float | None = None
    uncorrected: float | None = None
    smallest: float | None = None


@dataclass(frozen=True)
class SearcherComparison:
    """Groups of runs on the same objectives and items, compared up to the same cost.

    Attributes:
        objectives: what all runs are scored on.
        reference: the hypervolume's reference point: objective → worst value among all runs' reference models.
        cost: what is counted, trials or item evaluations.
        checkpoints: a quarter, a half and all of what is compared.
        groups: the one with the best median at the end first.
        pairs: every two groups.
        paired: whether the test takes runs of equal seeds together.
        notes: what a reader has to know to read the numbers, in sentences.
    """

    objectives: tuple[ObjectiveInfo, ...]
    reference: Mapping[str, float]
    cost: Cost
    checkpoints: tuple[int, int, int]
    groups: tuple[Group, ...]
    pairs: tuple[Pair, ...]
    paired: bool
    notes: tuple[str, ...]

    @property
    def measure(self) -> str:
        """What a run's value is called."""
        return "hypervolume" if len(self.objectives) > 1 else f"best {self.objectives[0].title}"

    @property
    def unit(self) -> str:
        """What is counted, in words."""
        return "trials" if self.cost == "trials" else "item evaluations"

    def against_best(self, group: Group) -> Pair | None:
        """Return the pair of the best group and ``group``; None for the best group itself."""
        found = (pair for pair in self.pairs if (pair.better, pair.other) == (self.groups[0].label, group.label))
        return next(found, None)
