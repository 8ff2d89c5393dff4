"""``amortized.json``: what the surrogates of a run say (MAP's amortized front), and which recipe suits a preference.

Written after the search, by searchers that fit surrogates. Asking it costs no evaluation: the file holds the recipes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from evomerge.errors import RunError
from evomerge.experiments.preferences import best
from evomerge.experiments.run_folder import write_json
from evomerge.recipes import Recipe
from evomerge.search_spaces import SearchSpace
from evomerge.search_spaces.genes import Value
from evomerge.searchers import ObjectiveSpec
from evomerge.searchers.surrogates.explanation import Explanation, Prediction, SurrogateFacts

Basis = Literal["predicted", "evaluated", "confirmed"]


@dataclass(frozen=True)
class Amortized:
    """The file's contents: see `Explanation`; ``recipes`` are those of the predicted front."""

    explanation: Explanation
    recipes: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """The recipe for a preference: of a trial, or of a point of the predicted front, confirmed or not.

    Attributes:
        basis: whether anybody has evaluated the recipe, and on items that the search never saw.
        objectives: predicted from all trials where surrogates were fitted, else as evaluated in the search.
        standard_errors: of predictions; empty for what was only evaluated.
        recipe: as data.
        trial: the number of the trial or the confirmed prediction; None if it was never evaluated.
        evaluated: the trial's objectives in the search; None for a prediction.
        confirmed: its scores with intervals, as in ``front.jsonl``.
    """

    basis: Basis
    objectives: dict[str, float]
    standard_errors: dict[str, float]
    recipe: dict[str, Any]
    trial: int | None = None
    evaluated: dict[str, float] | None = None
    confirmed: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        """What it is called: ``trial 3``, ``prediction 81``, and ``predicted`` where nobody evaluated it."""
        if self.trial is None:
            return "predicted"
        return f"{'prediction' if self.evaluated is None else 'trial'} {self.trial}"


def write_amortized(path: Path, explanation: Explanation, space: SearchSpace) -> None:
    """Write what a searcher explained, with the recipes of its predicted front."""
    recipes = [_as_data(space.express(prediction.genome)) for prediction in explanation.front]
    data = {
        "surrogates": {name: asdict(facts) for name, facts in explanation.surrogates.items()},
        "front": [
            asdict(prediction) | {"recipe": recipe}
            for prediction, recipe in zip(explanation.front, recipes, strict=True)
        ],
        "trials": {str(number): asdict(prediction) for number, prediction in explanation.trials.items()},
        "foretold": {str(number): asdict(prediction) for number, prediction in explanation.foretold.items()},
        "confirm": list(explanation.confirm),
    }
    write_json(path, data)


def read_amortized(path: Path) -> Amortized | None:
    """Return the file's contents; None where there is none.

    Raises:
        RunError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        front = [dict(entry) for entry in data["front"]]
        recipes = [entry.pop("recipe") for entry in front]
        explanation = Explanation(
            {name: SurrogateFacts(**facts) for name, facts in data["surrogates"].items()},
            [Prediction(**entry) for entry in front],
            {int(number): Prediction(**entry) for number, entry in data["trials"].items()},
            {int(number): Prediction(**entry) for number, entry in data["foretold"].items()},
            tuple(data["confirm"]),
        )
        return Amortized(explanation, recipes)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); resume the run to have it written again") from error


def answers(
    front: Sequence[Mapping[str, Any]], amortized: Amortized | None, objectives: Sequence[ObjectiveSpec]
) -> list[Answer]:
    """Return what a preference chooses from: the front, and where surrogates were fitted what they predict besides.

    Args:
        front: entries of ``front.jsonl``.
        amortized: of the same run.
        objectives: of the run.
    """
    found = [_known(entry, amortized) for entry in front]
    if amortized is not None:
        confirmed = {_key(entry["genome"]) for entry in front if entry.get("predicted")}
        for prediction, recipe in zip(amortized.explanation.front, amortized.recipes, strict=True):
            if _key(prediction.genome) not in confirmed:
                found.append(Answer("predicted", prediction.objectives, prediction.standard_errors, recipe))
    names = [objective.name for objective in objectives]
    return [answer for answer in found if all(name in answer.objectives for name in names)]


def answer(
    front: Sequence[Mapping[str, Any]],
    amortized: Amortized | None,
    weights: Mapping[str, float],
    objectives: Sequence[ObjectiveSpec],
) -> tuple[Answer, Answer | None]:
    """Return the recipe that suits a preference best, and where nobody evaluated it the best one that was.

    Raises:
        RunError: the run has no front yet.
    """
    known = answers(front, amortized, objectives)
    if not known:
        raise RunError("the run has no front yet: no trial is finished")
    chosen = known[best([each.objectives for each in known], weights, objectives)]
    evaluated = [each for each in known if each.trial is not None]
    if chosen.trial is not None or not evaluated:
        return chosen, None
    # the range of all is what shortfalls are measured by, so the evaluated ones are compared within it
    ranked = best([each.objectives for each in known], weights, objectives, among=[e.trial is not None for e in known])
    return chosen, known[ranked]


def _known(entry: Mapping[str, Any], amortized: Amortized | None) -> Answer:
    """Return a trial or a confirmed prediction as an answer."""
    number, confirmed = int(entry["trial"]), entry.get("confirmed")
    predicted = amortized.explanation.trials.get(number) if amortized is not None else None
    return Answer(
        "confirmed" if confirmed else "evaluated",
        dict(predicted.objectives if predicted else entry["objectives"]),
        dict(predicted.standard_errors if predicted else entry.get("standard_errors", {})),
        dict(entry["recipe"]),
        number,
        None if entry.get("predicted") else dict(entry["objectives"]),
        confirmed,
    )


def _key(genome: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(genome.items()))


def _as_data(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude_defaults=True)
