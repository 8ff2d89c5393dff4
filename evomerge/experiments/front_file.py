"""``front.jsonl``: the non-dominated trials, one JSON object a line, best known at any time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import RunError
from evomerge.experiments.confirmation import Confirmation, Confirmed
from evomerge.experiments.journal import Trial
from evomerge.experiments.run_folder import write_atomically
from evomerge.recipes import Recipe


def write_front(path: Path, front: Sequence[tuple[Trial, Recipe]], confirmation: Confirmation | None) -> None:
    """Replace the front file.

    Each line holds ``trial``, ``genome``, ``objectives`` (on the search items), ``standard_errors`` (only where
    objectives are estimated), ``confirmed`` (objective to value and 95% interval on the confirmation items; null before
    that) and ``recipe``.
    """
    confirmed = confirmation.trials if confirmation else {}
    lines = [
        json.dumps(_entry(trial, recipe, confirmed.get(trial.number)), ensure_ascii=False) for trial, recipe in front
    ]
    write_atomically(path, "".join(line + "\n" for line in lines))


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


def _entry(trial: Trial, recipe: Recipe, confirmed: Confirmed | None) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "genome": trial.genome,
        "objectives": trial.objectives,
        **({"standard_errors": trial.standard_errors} if trial.standard_errors else {}),
        "confirmed": _intervals(confirmed) if confirmed else None,
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
    }


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
