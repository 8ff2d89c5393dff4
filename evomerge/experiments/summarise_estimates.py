"""What a run with estimated scores spent, how good its estimates were, and the abilities behind them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.experiments.calibration import read_banks
from evomerge.experiments.journal import Trial
from evomerge.experiments.response_store import ResponseStore
from evomerge.experiments.run_folder import RunFolder
from evomerge.fitness import Responses
from evomerge.fitness.estimate_config import EstimateConfig
from evomerge.fitness.irt.bank import ItemBank
from evomerge.fitness.irt.likelihood import abilities
from evomerge.fitness.irt.variational import predict
from evomerge.reports.summary import (
    Z95,
    AbilityRow,
    ConfirmedRow,
    EstimateCheck,
    Estimates,
    Interval,
    ItemsSpent,
    RunSummary,
    TrialRow,
)


def estimates(
    summary: RunSummary,
    config: EstimateConfig,
    folder: RunFolder,
    facts: Mapping[str, Any],
    trials: Sequence[Trial],
    hashes: Mapping[str, str],
) -> Estimates | None:
    """Return the part of a run's summary on its estimates; None before the items are chosen.

    Args:
        summary: the rest of it.
        config: what was to be estimated, and how.
        folder: the run's.
        facts: the journal's.
        trials: the journal's.
        hashes: label of each confirmed model to the hash of its recipe.

    Raises:
        ConfigError: the run is confirmed, and its item banks are missing or damaged.
    """
    if "estimation" not in facts:
        return None
    references = [reference.name for reference in summary.references]
    merges = sum(name not in references for name in facts["calibration"])
    evaluated = [trial for trial in trials if trial.items and not trial.cached]
    counts = facts["item_counts"]["search"]
    soft = _soft(folder, evaluated) if config.soft else Counter[str]()
    found = Estimates(
        kind=config.method,
        items=config.items,
        adaptive=config.adaptive is not None,
        bank=config.bank or "",
        merges=merges,
        evaluated=len(evaluated),
        spent={
            task: ItemsSpent(
                search=count,
                calibration=merges * count,
                trials=sum(trial.items.get(task, 0) for trial in evaluated),
                exact=len(evaluated) * count,
                soft=soft[task],
            )
            for task, count in counts.items()
        },
    )
    if not summary.confirmed:
        return found
    banks = read_banks(folder.banks, [objective.name for objective in summary.objectives])
    compared = [row for row in summary.confirmed if row.trial in (None, summary.pick)]
    return replace(
        found,
        checks={name: checks(summary, name, len(bank.items)) for name, bank in banks.items()},
        abilities=[_abilities(row, banks, folder, hashes[row.label]) for row in compared],
        dimensions={name: bank.parameters.dimensions for name, bank in banks.items()},
    )


def _soft(folder: RunFolder, evaluated: Sequence[Trial]) -> Counter[str]:
    """Return how many soft responses of each task are stored: the trials' and those of calibration."""
    searched, calibrated = (ResponseStore(folder.responses, part) for part in ("search", "calibration"))
    found = Counter[str]()
    for store, hashes in ((searched, [trial.recipe_hash for trial in evaluated]), (calibrated, list(calibrated))):
        for responses in filter(None, (_responses(store, recipe_hash) for recipe_hash in hashes)):
            found.update({task: len(given.gold or {}) for task, given in responses.tasks.items()})
    return found


def _responses(store: ResponseStore, recipe_hash: str) -> Responses | None:
    outcome = store.read(recipe_hash)
    return None if outcome is None or outcome.responses is None else Responses.from_json(outcome.responses)


def checks(summary: RunSummary, objective: str, items: int) -> list[EstimateCheck]:
    """Return each confirmed trial's estimate beside its confirmed score.

    The two differ by the estimate's error, and because neither the search items nor the confirmation items are all the
    items there are: the interval of the difference has all three parts.

    Args:
        summary: has the trials and the confirmed models.
        objective: its name.
        items: how many items' mean was estimated.
    """
    trials = {trial.number: trial for trial in summary.trials}
    pairs = [(trials[row.trial], row.objectives[objective]) for row in summary.confirmed if row.trial in trials]
    return [_check(trial, objective, confirmed, items) for trial, confirmed in pairs]


def _check(trial: TrialRow, objective: str, confirmed: Interval, items: int) -> EstimateCheck:
    estimate = trial.interval(objective)
    of_estimate = Z95 * trial.standard_errors.get(objective, 0.0)
    of_confirmation = (confirmed.high - confirmed.low) / 2
    of_search = of_confirmation * math.sqrt(confirmed.items / items)
    value = estimate.value - confirmed.value
    reach = math.hypot(of_estimate, of_confirmation, of_search) if confirmed.known else 0.0
    return EstimateCheck(trial.number, estimate, confirmed, Interval(value, value - reach, value + reach))


def _abilities(row: ConfirmedRow, banks: Mapping[str, ItemBank], folder: RunFolder, recipe_hash: str) -> AbilityRow:
    """Return a model's abilities; none where its responses on the search items are no longer there."""
    part = "calibration" if row.trial is None else "search"
    responses = _responses(ResponseStore(folder.responses, part), recipe_hash)
    values = {} if responses is None else {name: ability(bank, responses) for name, bank in banks.items()}
    return AbilityRow(row.label, row.kind, values)


def ability(bank: ItemBank, responses: Responses) -> tuple[float, float]:
    """Return a model's ability and its standard error; of several abilities, the score on all items they lead to.

    Several abilities mean nothing by themselves: they could be turned in their space without any response getting less
    likely. The score's standard error is that of the abilities, by the delta method.
    """
    given = responses.tasks[bank.task]
    known = dict(zip(given.items, given.values[bank.metric], strict=True))
    row = np.array([[np.nan if (value := known.get(item)) is None else value for item in bank.items]], dtype=float)
    found, items = abilities(bank.parameters, row), bank.parameters
    if items.dimensions == 1:
        return float(found.means[0, 0]), float(found.standard_errors[0, 0])
    logistic = predict(items, found.means, found.covariances)[0]
    span = items.upper - items.lower
    gradient = (span * logistic * (1 - logistic)) @ items.slopes / len(items)
    return float((items.lower + span * logistic).mean()), math.sqrt(gradient @ found.covariances[0] @ gradient)
