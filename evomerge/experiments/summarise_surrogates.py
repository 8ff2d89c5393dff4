"""What a run's surrogates said of its trials, and what these scored."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.experiments.amortized import Amortized
from evomerge.experiments.journal import Trial
from evomerge.reports.summary import Foretelling, Surrogates


def surrogates(amortized: Amortized, trials: Sequence[Trial]) -> Surrogates:
    """Return the part of a run's summary on its surrogates.

    Args:
        amortized: what they say.
        trials: the journal's.
    """
    found = amortized.explanation
    return Surrogates(
        facts=found.surrogates,
        front=[prediction.objectives for prediction in found.front],
        foretold={name: _foretold(name, amortized, trials) for name in found.surrogates},
    )


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
