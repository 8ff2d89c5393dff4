"""What a run's surrogates said of its trials and of the front that they predict, and what these scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.experiments.amortized import Amortized
from evomerge.experiments.confirmation import Confirmation
from evomerge.experiments.journal import Trial
from evomerge.reports.summary import Z95, Foretelling, Surrogates


def surrogates(
    amortized: Amortized, trials: Sequence[Trial], confirmation: Confirmation | None, facts: Mapping[str, Any]
) -> Surrogates:
    """Return the part of a run's summary on its surrogates.

    Args:
        amortized: what they say.
        trials: the journal's.
        confirmation: of these trials; None before it.
        facts: the journal's.
    """
    found = amortized.explanation
    return Surrogates(
        facts=found.surrogates,
        front=[prediction.objectives for prediction in found.front],
        foretold={name: _foretold(name, amortized, trials) for name in found.surrogates},
        confirmed={name: _confirmed(name, confirmation, facts) for name in found.surrogates} if confirmation else {},
    )


def _confirmed(objective: str, confirmation: Confirmation, facts: Mapping[str, Any]) -> list[Foretelling]:
    """Return what the confirmed predictions were predicted to be beside what they scored.

    A prediction is of the score on the search items, so beside its own error there are those of both splits' means as
    samples of all the items there are.
    """
    found = []
    for number, prediction in confirmation.predictions.items():
        row = confirmation.candidates[number]
        interval = row.intervals[objective]
        of_mean = (interval.high - interval.low) / (2 * Z95) if math.isfinite(interval.low) else 0.0
        of_search = of_mean * math.sqrt(interval.items / _items(objective, facts))
        error = math.hypot(prediction.standard_errors[objective], of_mean, of_search)
        found.append(Foretelling(number, prediction.objectives[objective], error, row.scores[objective]))
    return found


def _items(objective: str, facts: Mapping[str, Any]) -> int:
    task = next(each["task"] for each in facts["objectives"] if each["name"] == objective)
    return int(facts["item_counts"]["search"][task])


def _foretold(objective: str, amortized: Amortized, trials: Sequence[Trial]) -> list[Foretelling]:
    predictions = amortized.explanation.foretold
    return [
        Foretelling(
            trial.number,
            predictions[trial.number].objectives[objective],
            predictions[trial.number].standard_errors[objective],
            trial.objectives[objective],
        )
        for trial in trials
        if trial.objectives is not None and trial.number in predictions
    ]
