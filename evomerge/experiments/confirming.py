"""What a run confirms: its reference models, the front's trials, and points of the front that surrogates predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evomerge.experiments.amortized import Amortized
from evomerge.experiments.confirmation import Answered
from evomerge.experiments.evaluations import Evaluations
from evomerge.experiments.journal import Trial
from evomerge.fitness import Fitness, Responses
from evomerge.recipes import Recipe
from evomerge.searchers.surrogates.explanation import Prediction


@dataclass(frozen=True)
class Model:
    """A model to be confirmed; the attributes are those of `Confirmed`."""

    label: str
    kind: str
    trial: int | None
    recipe: Recipe
    predicted: Prediction | None = None


def predictions(amortized: Amortized, trials: Sequence[Trial]) -> list[Model]:
    """Return the points of the predicted front that are to be confirmed, numbered on after the trials.

    A recipe that a trial has is left out: it was evaluated, and is on the trials' front if it is any good.

    Args:
        amortized: what the surrogates of the run say.
        trials: all of the run, failed ones included.
    """
    known = {trial.recipe_hash for trial in trials}
    found: list[Model] = []
    for place in amortized.explanation.confirm:
        recipe = Recipe.model_validate(amortized.recipes[place])
        if recipe.hash in known:
            continue
        known.add(recipe.hash)
        number = len(trials) + len(found)
        prediction = amortized.explanation.front[place]
        found.append(Model(f"prediction {number}", "prediction", number, recipe, prediction))
    return found


def ask(
    models: Sequence[Model], evaluations: Evaluations, fitness: Fitness, note: Callable[[str], None]
) -> list[Answered]:
    """Evaluate models and return those that could be, with their responses.

    Args:
        models: what to ask.
        evaluations: on the confirmation items.
        fitness: scores responses; those of a broken merge may have no score.
        note: is told of each model that is left out.
    """
    for model in models:
        evaluations.start(model.recipe, label=model.label)
    answered = []
    for model in models:
        outcome = evaluations.outcome(model.recipe)
        if outcome.responses is None:
            note(f"{model.label} could not be confirmed and is left out: {outcome.error}")
            continue
        responses = Responses.from_json(outcome.responses)
        try:
            fitness.score(responses)
        except Exception as error:
            note(f"{model.label} could not be confirmed and is left out: {error}")
            continue
        answered.append(Answered(model.label, model.kind, model.trial, model.recipe, responses, model.predicted))
    return answered
