"""Responses: what a model scored on each item, with the signs of an evaluation that went wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

# A number for most metrics; metrics over a whole corpus (F1, perplexity) keep the pair they aggregate.
Value: TypeAlias = float | list[Any] | str | dict[str, Any] | None


@dataclass(frozen=True)
class TaskResponses:
    """The responses to one task's items.

    Attributes:
        items: ids, in the order of the data.
        values: for each ``metric,filter`` key one value an item; None where the task gives the item none.
        truncated: for generative tasks, whether the answer was cut off by the token limit.
        unextracted: for generative tasks, whether a filter that an objective uses found no answer.
        gold: the probability of the right answer, in [0, 1], by item id; of the items asked for it, which
            need not be those of ``items``. None if none was asked for.
    """

    items: tuple[str, ...]
    values: dict[str, list[Value]]
    truncated: list[bool] | None = None
    unextracted: list[bool] | None = None
    gold: dict[str, float] | None = None

    def with_more(self, more: TaskResponses) -> TaskResponses:
        """Return these responses, followed by those to further items."""
        if not (self.items and more.items):
            first, gold = (self, more.gold) if self.items else (more, self.gold)
            return replace(first, gold=_both(first.gold, gold))
        return TaskResponses(
            self.items + more.items,
            {key: values + more.values[key] for key, values in self.values.items()},
            _joined(self.truncated, more.truncated),
            _joined(self.unextracted, more.unextracted),
            _both(self.gold, more.gold),
        )

    @property
    def truncated_share(self) -> float | None:
        """The share of answers cut off by the token limit, in [0, 1]."""
        return _share(self.truncated)

    @property
    def unextracted_share(self) -> float | None:
        """The share of answers in which no answer was found, in [0, 1]."""
        return _share(self.unextracted)


@dataclass(frozen=True)
class Responses:
    """The responses of one model; equal when the tasks' are, whatever the evaluation took.

    Attributes:
        tasks: by task key.
        forward_seconds: time inside the model's forward passes.
        seconds: time of the whole evaluation.
    """

    tasks: dict[str, TaskResponses]
    forward_seconds: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)

    def with_more(self, more: Responses) -> Responses:
        """Return these responses and those of the same model to further items."""
        tasks = dict(self.tasks)
        for key, found in more.tasks.items():
            tasks[key] = tasks[key].with_more(found) if key in tasks else found
        return Responses(tasks, self.forward_seconds + more.forward_seconds, self.seconds + more.seconds)

    def to_json(self) -> str:
        """Return one line of JSON; floats read back exactly."""
        # Not asdict, which would copy every value: that takes ten times as long as all else here.
        tasks = {key: vars(each) for key, each in self.tasks.items()}
        return json.dumps({**vars(self), "tasks": tasks}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Responses:
        """Return the responses that ``to_json`` wrote."""
        data: Mapping[str, Any] = json.loads(text)
        tasks = {
            key: TaskResponses(
                tuple(task["items"]), task["values"], task["truncated"], task["unextracted"], task.get("gold")
            )
            for key, task in data["tasks"].items()
        }
        return cls(tasks, data["forward_seconds"], data["seconds"])


def _joined(first: list[bool] | None, more: list[bool] | None) -> list[bool] | None:
    return None if first is None or more is None else first + more


def _both(first: dict[str, float] | None, more: dict[str, float] | None) -> dict[str, float] | None:
    return first if more is None else {**(first or {}), **more}


def _share(flags: list[bool] | None) -> float | None:
    return sum(flags) / len(flags) if flags else None
