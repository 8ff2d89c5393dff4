"""The responses of many models to the items of one task, and what is wrong with them for calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.errors import ConfigError, Problem
from evomerge.fitness.irt.bank import Array


@dataclass(frozen=True, eq=False)
class ResponseMatrix:
    """Responses of models to items.

    Attributes:
        values: float64 (models, items): 0 wrong, 1 right, between for graded responses; NaN where missing.
        models: names, one a row.
        items: ids, one a column.
        task: what the file says about the task; empty when it says nothing.
        metric: the same of the metric.
    """

    values: Array
    models: tuple[str, ...]
    items: tuple[str, ...]
    task: str = ""
    metric: str = ""

    @property
    def seen(self) -> int:
        """The number of responses that are there."""
        return int((~np.isnan(self.values)).sum())

    def constant_items(self) -> tuple[str, ...]:
        """Return the items to which all models responded the same, or none did."""
        return tuple(name for name, column in zip(self.items, self.values.T, strict=True) if _is_constant(column))

    def constant_models(self) -> tuple[str, ...]:
        """Return the models whose responses are all the same, or all missing."""
        return tuple(name for name, row in zip(self.models, self.values, strict=True) if _is_constant(row))

    def without_items(self, items: Sequence[str]) -> ResponseMatrix:
        """Return the matrix without some items."""
        dropped = set(items)
        kept = [n for n, item in enumerate(self.items) if item not in dropped]
        names = tuple(self.items[n] for n in kept)
        return ResponseMatrix(self.values[:, kept], self.models, names, self.task, self.metric)

    def problems(self, dimensions: int = 1, where: str = "") -> list[Problem]:
        """Return what keeps ``dimensions`` abilities from being calibrated on these responses."""
        problems = self._malformed(where)
        if problems:
            return problems
        constant = self.constant_items()
        if constant:
            what = f"all models respond the same to {_some(constant, 'item')}, which says nothing about models"
            problems.append(
                Problem(
                    what, where, "leave such items out (--drop-constant), keep them (--keep-constant), or add models"
                )
            )
        if len(self.items) - len(constant) < max(dimensions, 2):
            what = f"{len(self.items) - len(constant)} items that tell models apart are too few"
            hint = f"at least {max(dimensions, 2)} are needed for {dimensions} dimension{'s' * (dimensions != 1)}"
            problems.append(Problem(what, where, hint))
        informative = len(self.models) - len(self.constant_models())
        if informative < 2:
            what = f"{informative} models with responses that differ are too few to calibrate items"
            problems.append(Problem(what, where, "add models"))
        return problems

    def warnings(self, where: str = "") -> list[Problem]:
        """Return what calibration can live with, but the user should know."""
        constant = self.constant_models()
        if not constant:
            return []
        what = f"the responses of {_some(constant, 'model')} are all the same"
        return [Problem(what, where, "if an evaluation failed, leave its model out")]

    def _malformed(self, where: str) -> list[Problem]:
        if self.values.shape != (len(self.models), len(self.items)):
            what = f"responses of shape {self.values.shape}, but {len(self.models)} models and {len(self.items)} items"
            return [Problem(what, where)]
        problems = []
        for kind, names in (("model", self.models), ("item", self.items)):
            twice = tuple(name for name, count in Counter(names).items() if count > 1)
            if twice:
                problems.append(Problem(f"{_some(twice, kind)} more than once", where, f"keep one of each {kind}"))
        with np.errstate(invalid="ignore"):
            outside = np.argwhere((self.values < 0) | (self.values > 1))
        if len(outside):
            row, column = outside[0]
            value, place = self.values[row, column], f"model {self.models[row]!r}, item {self.items[column]!r}"
            what = f"{len(outside)} responses lie outside [0, 1], such as {value:g} ({place})"
            problems.append(
                Problem(what, where, "missing responses are empty cells or NaN; scores must be scaled to [0, 1]")
            )
        return problems


def checked(matrix: ResponseMatrix, dimensions: int = 1, where: Path | str = "") -> ResponseMatrix:
    """Return ``matrix`` if ``dimensions`` abilities can be calibrated on it.

    Raises:
        ConfigError: it cannot; holds every problem found.
    """
    problems = matrix.problems(dimensions, str(where))
    if problems:
        raise ConfigError(problems)
    return matrix


def _is_constant(responses: Array) -> bool:
    there = responses[~np.isnan(responses)]
    return len(there) == 0 or bool((there == there[0]).all())


def _some(names: Sequence[str], kind: str) -> str:
    listed = ", ".join(repr(name) for name in names[:3])
    return f"the {kind} {listed}" if len(names) == 1 else f"{len(names)} {kind}s ({listed}{', …' * (len(names) > 3)})"
