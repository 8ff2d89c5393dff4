"""Search items that the confirmation asks too: what is confirmed on them was searched on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from evomerge.errors import Problem
from evomerge.fitness.fitness import Fitness
from evomerge.fitness.items import Item


def overlaps(fitness: Fitness) -> list[Problem]:
    """Return a warning for each pair of tasks whose search and confirmation items, as capped, have some in common.

    Items are alike if they ask the same, white space and case aside, under whatever id. Within a task those that expect
    the same answer too are never on both sides (`evomerge.fitness.items`); between tasks they may be. Functions without
    items of their own are warned about by themselves.
    """
    searched, confirmed = fitness.chosen("search"), fitness.chosen("confirmation")
    asked = {task: _by_question(items) for task, items in confirmed.items()}
    return [
        problem
        for task, items in searched.items()
        for other, theirs in asked.items()
        for problem in _warning(task, items, other, theirs)
    ]


def _by_question(items: Iterable[Item]) -> Mapping[str, set[str]]:
    """Return question → contents of the items that ask it; none where all of several items ask the same."""
    found: dict[str, set[str]] = {}
    for item in items:
        if item.question:
            found.setdefault(item.question, set()).add(item.content)
    constant = len(found) == 1 and sum(map(len, found.values())) > 1
    return {} if constant else found


def _warning(task: str, items: tuple[Item, ...], other: str, theirs: Mapping[str, set[str]]) -> list[Problem]:
    alike = [item for item in items if item.question in theirs]
    if not alike:
        return []
    same = sum(item.content in theirs[item.question] for item in alike)
    whose = "its confirmation" if task == other else f"the confirmation of {other!r}"
    answers = "with the same answer" if same == len(alike) else f"{same} of them with the same answer"
    what = f"{len(alike)} of the {len(items)} search items of {task!r} ask what {whose} asks too, {answers}"
    return [
        Problem(what, "", "the search sees what it is confirmed on: give these tasks data that has nothing in common")
    ]
