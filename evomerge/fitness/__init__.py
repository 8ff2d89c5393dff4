"""Fitness: tasks, items, responses and objectives.

A :class:`Fitness` is built once a process from the `fitness:` section of an experiment; it evaluates a
resident model on chosen items (:class:`Responses`) and turns them into objectives.
"""

from evomerge.fitness.fitness import Fitness
from evomerge.fitness.objectives import Direction, FitnessConfig, Objective, ObjectiveConfig, Split
from evomerge.fitness.responses import Responses, TaskResponses

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
