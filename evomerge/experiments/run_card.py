"""The model card of a trial: the run's facts in the form that ``evomerge.export`` renders."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.experiments.confirmation import Confirmation, Confirmed
from evomerge.experiments.journal import Journal, Trial
from evomerge.experiments.preflight import Prepared
from evomerge.experiments.statistics import Estimate
from evomerge.export.card import describe, folders_of
from evomerge.export.card_data import (
    CardData,
    Comparison,
    EstimateInfo,
    ObjectiveInfo,
    Score,
    ScoreRow,
    SearchInfo,
)
from evomerge.fitness.estimate_config import EstimateConfig
from evomerge.merging.stages import models_of
from evomerge.recipes import NamedRecipe, Recipe


def card_of(
    prepared: Prepared,
    journal: Journal,
    confirmation: Confirmation | None,
    number: int,
    recipe: Recipe,
    stages: tuple[NamedRecipe, ...] = (),
    before: Sequence[str] = (),
) -> CardData:
    """Return what the card of a trial or a confirmed prediction says.

    Args:
        prepared: the parts of the run.
        journal: the run's.
        confirmation: the run's; None before it is finished.
        number: of the trial or prediction.
        recipe: its own.
        stages: where the recipe is the last of several: all of them.
        before: a line for each earlier stage of the run.
    """
    experiment, facts = prepared.experiment, journal.facts()
    parents = models_of(stages) if stages else recipe.parents()
    return describe(
        recipe,
        experiment.name,
        folders=folders_of({reference: prepared.parents[reference] for reference in parents}),
        nicknames={ref: nickname for nickname, ref in (experiment.parents | experiment.also_score).items()},
        search=dataclasses.replace(_search(prepared, journal, facts, confirmation, number), before=tuple(before)),
        objectives=tuple(ObjectiveInfo(o["name"], o["task"], o["metric"], o["direction"]) for o in facts["objectives"]),
        scores=_scores(confirmation, number),
        comparisons=_comparisons(confirmation, number),
        stages=stages,
    )


def _plain(value: Any) -> str:
    """Return a field of the experiment as YAML has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _search(
    prepared: Prepared,
    journal: Journal,
    facts: Mapping[str, Any],
    confirmation: Confirmation | None,
    number: int,
) -> SearchInfo:
    experiment, trials = prepared.experiment, journal.trials()
    searched, confirmed = prepared.fitness.items("search"), prepared.fitness.items("confirmation")
    space, searcher = experiment.search_space, experiment.searcher
    return SearchInfo(
        search_space=", ".join(
            f"{key}: {_plain(value)}" for key, value in space.model_dump(exclude_defaults=True).items()
        ),
        searcher=searcher.kind,
        seed=searcher.seed,
        trials=len(trials),
        failed_trials=sum(trial.failed for trial in trials),
        front_size=len(confirmation.candidates) - len(confirmation.predictions) if confirmation else None,
        predictions=len(confirmation.predictions) if confirmation else 0,
        trial=number,
        is_predicted=confirmation is not None and number in confirmation.predictions,
        pick=confirmation.rule if confirmation and confirmation.pick == number else "",
        search_items=facts["item_counts"]["search"],
        confirmation_items=facts["item_counts"]["confirmation"],
        shared_items=tuple(task for task, items in confirmed.items() if set(items) & set(searched[task])),
        estimate=_estimate(experiment.fitness.estimate, facts, trials),
    )


def _estimate(config: EstimateConfig | None, facts: Mapping[str, Any], trials: Sequence[Trial]) -> EstimateInfo | None:
    if config is None:
        return None
    references = {reference["name"] for reference in facts["references"]}
    asked = {
        task: [trial.items[task] for trial in trials if task in trial.items] for task in facts["item_counts"]["search"]
    }
    return EstimateInfo(
        kind=config.method,
        items={task: (min(counts), max(counts)) for task, counts in asked.items() if counts},
        bank=Path(config.bank).name if config.bank else "",  # its folder is nobody's business
        merges=len(set(facts["calibration"]) - references),
        soft=config.soft is not None,
    )


def _scores(confirmation: Confirmation | None, number: int) -> tuple[ScoreRow, ...]:
    if confirmation is None or number not in confirmation.candidates:
        return ()
    references = [row for row in confirmation.rows if row.trial is None]
    return tuple(_score_row(row) for row in [confirmation.candidates[number], *references])


def _score_row(row: Confirmed) -> ScoreRow:
    kind: Any = "winner" if row.trial is not None else row.kind
    scores = {name: _score(dataclasses.replace(e, value=row.scores[name])) for name, e in row.intervals.items()}
    return ScoreRow("this model" if row.trial is not None else row.label, kind, scores, _score(row.mean))


def _score(estimate: Estimate) -> Score:
    if not math.isfinite(estimate.low):  # a single item
        return Score(estimate.value)
    return Score(estimate.value, estimate.low, estimate.high)


def _comparisons(confirmation: Confirmation | None, number: int) -> tuple[Comparison, ...]:
    if confirmation is None or confirmation.pick != number:
        return ()
    candidates = "trials and predictions" if confirmation.predictions else "trials"
    count = len(confirmation.candidates)
    test = f"paired sign-flip test over items, corrected for the {count} {candidates} picked from"
    return tuple(
        Comparison(
            rival=c.against,
            objective="mean over the objectives",
            difference=c.difference.value,
            low=c.difference.low if math.isfinite(c.difference.low) else None,
            high=c.difference.high if math.isfinite(c.difference.high) else None,
            p_value=c.p_value,
            test=test,
        )
        for c in confirmation.comparisons
    )
