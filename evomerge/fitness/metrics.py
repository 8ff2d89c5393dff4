"""Metric keys, ``metric,filter`` as lm-eval writes them: those a task has, and the one an objective means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.registry import AGGREGATION_REGISTRY

from evomerge.errors import FitnessError, Problem, suggest
from evomerge.fitness.objectives import Direction
from evomerge.fitness.responses import Value

Aggregate = Callable[[Sequence[Any]], float]


@dataclass(frozen=True)
class Metric:
    """One metric after one filter.

    Attributes:
        name: such as ``exact_match``.
        filter: what prepares the answer, ``none`` for most tasks.
        direction: as the task declares it; None where it does not.
        aggregation: name of the function from per-item values to the score.
        aggregate: that function.
    """

    name: str
    filter: str
    direction: Direction | None
    aggregation: str
    aggregate: Aggregate

    @property
    def key(self) -> str:
        """``name,filter``, the key of the values in responses."""
        return f"{self.name},{self.filter}"

    def score(self, values: Sequence[Value]) -> float:
        """Return the score of per-item values; items to which the task gives no value are left out.

        Raises:
            FitnessError: no item has a value, or the score is not finite.
        """
        present = [value for value in values if value is not None]
        if not present:
            raise FitnessError(f"{self.key}: none of the {len(values)} items has a value for this metric")
        if self.aggregation == "mean":
            score = math.fsum(_number(value, self.key) for value in present) / len(present)
        else:
            score = float(self.aggregate(present))
        if not math.isfinite(score):
            raise FitnessError(f"{self.key}: the {self.aggregation} of {len(present)} items is {score}, not a number")
        return score

    def item_values(self, values: Sequence[Value]) -> list[float]:
        """Return one number an item: its own value under a mean, else its jackknife pseudo-value.

        The pseudo-value n·θ − (n−1)·θ₋ᵢ (Tukey 1958) is an item's share of a score θ that is no mean,
        like F1. An item to which the task gives no value counts as the mean of the others.
        """
        present = [(index, value) for index, value in enumerate(values) if value is not None]
        if self.aggregation == "mean":
            shares = [_number(value, self.key) for _, value in present]
        else:
            whole, kept = self.score(values), [value for _, value in present]
            n = len(kept)
            shares = [n * whole - (n - 1) * self.score(kept[:i] + kept[i + 1 :]) for i in range(n)]
        filled = [math.fsum(shares) / len(shares)] * len(values)
        for (index, _), share in zip(present, shares, strict=True):
            filled[index] = share
        return filled


def task_metrics(task: Any) -> dict[str, Metric]:
    """Return the metrics of an lm-eval task by key, read from its configuration: no model is needed."""
    directions, aggregations = task.higher_is_better(), task.aggregation()
    metrics: dict[str, Metric] = {}
    for ensemble in task._filters:
        for name, aggregate in aggregations.items():
            better = directions.get(name)
            direction: Direction | None = None if better is None else ("maximize" if better else "minimize")
            metric = Metric(name, ensemble.name, direction, _aggregation_name(aggregate), aggregate)
            metrics[metric.key] = metric
    return metrics


def resolve_metric(
    task: str, metrics: Mapping[str, Metric], metric: str | None, filter_name: str | None
) -> Metric | Problem:
    """Return the one metric that an objective means, or a problem that lists the valid keys.

    Args:
        task: the task's key, for the message.
        metrics: the task's metrics by key.
        metric: ``name``, ``name,filter`` or None for the task's only one.
        filter_name: a filter, or None for the only one.
    """
    keys = ", ".join(repr(key) for key in sorted(metrics))
    name, _, inline = (metric or "").partition(",")
    if inline and filter_name and inline != filter_name:
        return Problem(
            f"metric {metric!r} names the filter {inline!r}, and `filter` is {filter_name!r}",
            "",
            "keep one of them",
        )
    wanted = inline or filter_name
    matching = [
        candidate
        for candidate in metrics.values()
        if name in ("", candidate.name) and wanted in (None, candidate.filter)
    ]
    if len(matching) == 1:
        return matching[0]
    if matching:
        what = f"task {task!r} has several metrics" + (f" named {name!r}" if name else "")
        return Problem(what, "", f"set `metric` to one of {keys}")
    names = {candidate.name for candidate in metrics.values()}
    if name and name not in names:
        return Problem(f"task {task!r} has no metric {name!r}", "", f"{suggest(name, names)} (keys: {keys})")
    return Problem(f"task {task!r} has no filter {wanted!r}", "", f"valid keys: {keys}")


def _aggregation_name(aggregate: Aggregate) -> str:
    names = {function: name for name, function in AGGREGATION_REGISTRY.items()}
    return str(names.get(aggregate) or getattr(aggregate, "__name__", "custom"))


def _number(value: Value, key: str) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    raise FitnessError(f"{key}: a mean needs numbers, an item has {value!r}")
