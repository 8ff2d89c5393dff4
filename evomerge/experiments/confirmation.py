"""Confirmation: the front again, on items that the search never saw.

A search picks the maximum of noisy scores, so the score it found is too high. Before anything is reported or exported,
the front, the parents and the uniform merge are evaluated on the confirmation items; the pick is made on those, and is
compared with the best parent and the uniform merge by a paired test, corrected for the number of candidates it was
picked from. Candidates are the trials of the front, and predictions: points of the front that surrogates predict,
which the search never evaluated. Predictions are numbered on after the run's trials.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evomerge.errors import RunError
from evomerge.experiments import picks, statistics
from evomerge.experiments.statistics import Estimate
from evomerge.fitness import Responses
from evomerge.recipes import Recipe
from evomerge.searchers import ObjectiveSpec
from evomerge.searchers.surrogates.explanation import Prediction

if TYPE_CHECKING:
    from evomerge.fitness import Fitness


@dataclass(frozen=True)
class Confirmed:
    """One model on the confirmation items: a trial, a prediction or a reference model.

    ``trial`` is the number of a trial or prediction; ``predicted`` is what a prediction was predicted to be.
    """

    label: str
    kind: str
    trial: int | None
    recipe_hash: str
    scores: dict[str, float]
    intervals: dict[str, Estimate]
    mean: Estimate
    truncated: dict[str, float]
    unextracted: dict[str, float]
    predicted: Prediction | None = None


@dataclass(frozen=True)
class PairedComparison:
    """The pick against a reference model: difference of weighted means (larger better), and the corrected p-value."""

    against: str
    difference: Estimate
    p_value: float


@dataclass(frozen=True)
class Confirmation:
    """What confirmation found; ``pick`` is a candidate's number, chosen by ``rule``, and ``recipe`` that candidate's.

    ``run_trials`` is the number of trials that the run had then.
    """

    rows: tuple[Confirmed, ...]
    pick: int
    rule: str
    comparisons: tuple[PairedComparison, ...]
    run_trials: int
    recipe: dict[str, Any]

    @property
    def candidates(self) -> dict[int, Confirmed]:
        """The confirmed trials and predictions by number."""
        return {row.trial: row for row in self.rows if row.trial is not None}

    @property
    def picked(self) -> Confirmed:
        """The pick."""
        return self.candidates[self.pick]

    @property
    def predictions(self) -> dict[int, Prediction]:
        """What the confirmed predictions were predicted to be, by number."""
        return {number: row.predicted for number, row in self.candidates.items() if row.predicted is not None}

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Answered:
    """A model with its responses on the confirmation items; the rest is as in `Confirmed`."""

    label: str
    kind: str
    trial: int | None
    recipe: Recipe
    responses: Responses
    predicted: Prediction | None = None


def confirm(
    models: Sequence[Answered], fitness: Fitness, objectives: Sequence[ObjectiveSpec], rule: str, trials: int
) -> Confirmation:
    """Score ``models``, pick a candidate by ``rule``, and compare it with the best parent and the uniform merge.

    Args:
        trials: how many trials the run has.

    Raises:
        ConfigError: the rule names no such candidate or objective.
    """
    tasks = {o.name: o.task for o in fitness.objectives}
    weights = {o.name: o.weight for o in objectives}
    gains = {
        model.label: statistics.by_task(_gains(model.responses, fitness, objectives), weights, tasks)[0]
        for model in models
    }
    shares = statistics.by_task(dict.fromkeys(weights, np.zeros(1)), weights, tasks)[1]
    rows = tuple(_row(model, gains[model.label], fitness, shares) for model in models)
    candidates = {row.trial: row for row in rows if row.trial is not None}
    chosen = picks.pick(rule, {number: row.scores for number, row in candidates.items()}, objectives)
    parents = [row for row in rows if row.kind == "parent"]
    rivals = [max(parents, key=lambda row: row.mean.value)] if parents else []
    rivals += [row for row in rows if row.kind in ("uniform", "base")]
    winner = gains[candidates[chosen].label]
    comparisons = tuple(
        PairedComparison(
            rival.label,
            statistics.paired_difference(winner, gains[rival.label], shares),
            statistics.paired_p_value(winner, gains[rival.label], shares, comparisons=len(candidates)),
        )
        for rival in rivals
    )
    recipe = next(model.recipe for model in models if model.trial == chosen)
    return Confirmation(rows, chosen, rule, comparisons, trials, recipe.model_dump(mode="json", exclude_defaults=True))


def read_confirmation(path: Path) -> Confirmation | None:
    """Return the confirmation stored at ``path``, or None.

    Raises:
        RunError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(_read_row(row) for row in data.pop("rows"))
        comparisons = tuple(
            PairedComparison(c["against"], Estimate(**c["difference"]), c["p_value"]) for c in data.pop("comparisons")
        )
        return Confirmation(rows=rows, comparisons=comparisons, **data)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it, then resume the run") from error


def _read_row(row: Mapping[str, Any]) -> Confirmed:
    intervals = {name: Estimate(**estimate) for name, estimate in row["intervals"].items()}
    predicted = Prediction(**row["predicted"]) if row.get("predicted") else None
    return Confirmed(**{**row, "intervals": intervals, "mean": Estimate(**row["mean"]), "predicted": predicted})


def _row(model: Answered, gains: Mapping[str, np.ndarray], fitness: Fitness, weights: Mapping[str, float]) -> Confirmed:
    responses = {o.name: fitness.item_values(model.responses, o.name) for o in fitness.objectives}
    return Confirmed(
        label=model.label,
        kind=model.kind,
        trial=model.trial,
        recipe_hash=model.recipe.hash,
        scores=fitness.score(model.responses),
        intervals={name: statistics.mean_of(statistics.stack(values)) for name, values in responses.items()},
        mean=statistics.weighted_mean_of(gains, weights),
        truncated=shares(model.responses, "truncated"),
        unextracted=shares(model.responses, "unextracted"),
        predicted=model.predicted,
    )


def shares(responses: Responses, kind: Literal["truncated", "unextracted"]) -> dict[str, float]:
    """Return, by task that generates, the share of its answers cut off by the token limit, or not extracted."""
    marks = {task: getattr(part, kind) for task, part in responses.tasks.items()}
    return {task: sum(marked) / len(marked) for task, marked in marks.items() if marked}


def _gains(responses: Responses, fitness: Fitness, objectives: Sequence[ObjectiveSpec]) -> dict[str, np.ndarray]:
    signs = {o.name: 1.0 if o.direction == "maximize" else -1.0 for o in objectives}
    return {name: sign * statistics.stack(fitness.item_values(responses, name)) for name, sign in signs.items()}
