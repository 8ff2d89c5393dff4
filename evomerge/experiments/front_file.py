"""``front.jsonl``: the non-dominated trials, one JSON object a line, best known at any time.

Once the run is confirmed, the points of the predicted front that were confirmed follow: what they score is known too.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from evomerge.errors import RunError
from evomerge.experiments.confirmation import Confirmation, Confirmed
from evomerge.experiments.journal import Trial
from evomerge.experiments.run_folder import write_atomically
from evomerge.recipes import Recipe

# A front of many trials takes long to write: after each time the file rests so many times as long.
REST = 20


class FrontFile:
    """The front file of a search that goes on.

    Args:
        path: of the file.
        express: returns the recipe of a trial.
    """

    def __init__(self, path: Path, express: Callable[[Trial], Recipe]) -> None:
        self._path, self._express = path, express
        self._lines: dict[int, str] = {}
        self._written: Sequence[Trial] = ()
        self._due = 0.0

    def update(self, front: Sequence[Trial]) -> None:
        """Replace the file if ``front`` is another list than last time, and if the file has rested long enough.

        Raises:
            RunError: it cannot be written.
        """
        began = time.monotonic()
        if front is self._written or began < self._due:
            return
        lines = {}
        for trial in front:
            lines[trial.number] = self._lines.get(trial.number) or _line(_entry(trial, self._express(trial), None))
        write_atomically(self._path, "".join(lines.values()))
        self._lines, self._written = lines, front
        self._due = time.monotonic() + REST * (time.monotonic() - began)


def write_front(
    path: Path,
    front: Sequence[tuple[Trial, Recipe]],
    confirmation: Confirmation | None,
    predicted: Mapping[int, Recipe] = MappingProxyType({}),
) -> None:
    """Replace the front file.

    Each line holds ``trial``, ``genome``, ``objectives`` (on the search items), ``standard_errors`` (only where
    objectives are estimated), ``confirmed`` (objective to value and 95% interval on the confirmation items; null before
    that) and ``recipe``. Of a confirmed prediction ``objectives`` and ``standard_errors`` are predicted, and
    ``predicted`` is true.

    Args:
        path: of the file.
        front: the trials with their recipes.
        confirmation: None before it.
        predicted: the recipes of the predictions that are confirmed, by number.
    """
    confirmed = confirmation.candidates if confirmation else {}
    entries = [_entry(trial, recipe, confirmed.get(trial.number)) for trial, recipe in front]
    entries += [_predicted(confirmed[number], recipe) for number, recipe in predicted.items()]
    write_atomically(path, "".join(_line(entry) for entry in entries))


def read_front(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a front file; none when it does not exist yet.

    Raises:
        RunError: the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); resume the run to have it written again") from error


def recipe_of(entry: dict[str, Any]) -> Recipe:
    """Return the recipe of a front file's entry."""
    return Recipe.model_validate(entry["recipe"])


def label_of(entry: dict[str, Any]) -> str:
    """Return what a front file's entry is called: ``trial 3``, ``prediction 81``."""
    return f"{'prediction' if entry.get('predicted') else 'trial'} {entry['trial']}"


def _entry(trial: Trial, recipe: Recipe, confirmed: Confirmed | None) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "genome": trial.genome,
        "objectives": trial.objectives,
        **({"standard_errors": trial.standard_errors} if trial.standard_errors else {}),
        "confirmed": _intervals(confirmed) if confirmed else None,
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
    }


def _predicted(confirmed: Confirmed, recipe: Recipe) -> dict[str, Any]:
    prediction = confirmed.predicted
    assert prediction is not None
    return {
        "trial": confirmed.trial,
        "predicted": True,
        "genome": prediction.genome,
        "objectives": prediction.objectives,
        "standard_errors": prediction.standard_errors,
        "confirmed": _intervals(confirmed),
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
    }


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _finite(value: float) -> float | None:
    """JSON has no infinity: one item alone has no interval."""
    return value if math.isfinite(value) else None


def _intervals(confirmed: Confirmed) -> dict[str, Any]:
    return {
        name: {
            "value": confirmed.scores[name],
            "low": _finite(interval.low),
            "high": _finite(interval.high),
            "items": interval.items,
        }
        for name, interval in confirmed.intervals.items()
    }
