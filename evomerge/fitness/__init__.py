"""Fitness: tasks, items, responses and objectives.

A :class:`Fitness` is built once a process from the `fitness:` section of an experiment; it evaluates a
resident model on chosen items (:class:`Responses`) and turns them into objectives. It is imported when first asked
for: commands that only read a run need neither torch nor lm-eval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evomerge.fitness.objectives import Direction, FitnessConfig, Objective, ObjectiveConfig, Split
from evomerge.fitness.responses import Responses, TaskResponses

if TYPE_CHECKING:
    from evomerge.fitness.fitness import Fitness

__all__ = [
    "Direction",
    "Fitness",
    "FitnessConfig",
    "Objective",
    "ObjectiveConfig",
    "Responses",
    "Split",
    "TaskResponses",
]


def __getattr__(name: str) -> Any:
    if name != "Fitness":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from evomerge.fitness.fitness import Fitness

    return Fitness
