"""What searchers share: keeping to the order of asking, and reading objectives."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from evomerge.errors import RunError
from evomerge.search_spaces.genes import Genome, Value
from evomerge.searchers.base import ObjectiveSpec

Note = TypeVar("Note")


class InFlight(Generic[Note]):
    """The genomes that are asked and not yet told, in ask order, each with the searcher's own note on it."""

    def __init__(self) -> None:
        self._asked: deque[tuple[dict[str, Value], Note]] = deque()

    def __len__(self) -> int:
        return len(self._asked)

    def asked(self, genome: dict[str, Value], note: Note) -> dict[str, Value]:
        """Remember ``genome`` and return a copy of it for the caller."""
        self._asked.append((genome, note))
        return dict(genome)

    def told(self, genome: Genome) -> Note:
        """Forget the longest-asked genome, which must be ``genome``, and return its note.

        Raises:
            RunError: nothing is in flight, or another genome is the longest-asked one.
        """
        if not self._asked:
            raise RunError("a result was told, but no genome is in flight: tell each asked genome once")
        expected, note = self._asked[0]
        if expected != genome:
            raise RunError(
                f"a result was told out of ask order: {_difference(expected, genome)}. Tell results in the "
                "order of asking; on resume, with the versions and searcher config that the run started with"
            )
        self._asked.popleft()
        return note


def objective_values(objectives: Sequence[ObjectiveSpec], told: Mapping[str, float] | None) -> tuple[float, ...] | None:
    """Return the values in the order of ``objectives``; ``None`` if it failed or a value is not finite.

    Raises:
        RunError: an objective has no value.
    """
    if told is None:
        return None
    missing = [objective.name for objective in objectives if objective.name not in told]
    if missing:
        raise RunError(f"no value told for the objectives {missing}; told were {sorted(told)}")
    values = tuple(float(told[objective.name]) for objective in objectives)
    return values if all(math.isfinite(value) for value in values) else None


def weighted_cost(objectives: Sequence[ObjectiveSpec], values: Sequence[float]) -> float:
    """Return Σ weight·value with the sign turned so that less is better; values are not rescaled."""
    signs = (-1.0 if objective.direction == "maximize" else 1.0 for objective in objectives)
    return sum(
        sign * objective.weight * value for sign, objective, value in zip(signs, objectives, values, strict=True)
    )


def _difference(expected: Genome, told: Genome) -> str:
    for name in (*expected, *told):
        if expected.get(name) != told.get(name):
            return f"expected {name} = {expected.get(name)!r}, told was {told.get(name)!r}"
    return "the genomes differ"
