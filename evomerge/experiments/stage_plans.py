"""What each stage of an experiment evaluates: how many models, on how many items."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from evomerge.experiments import hybrid, nested
from evomerge.experiments.preflight import Prepared
from evomerge.experiments.schema import ExperimentConfig
from evomerge.fitness.lengths import Lengths
from evomerge.reports.planned import Span, StagePlan, TaskPlan
from evomerge.search_spaces import ChoiceGene, FloatGene, Gene
from evomerge.searchers import SEARCHERS
from evomerge.searchers.map import MapConfig

KINDS = {FloatGene: "real numbers", ChoiceGene: "choices"}


def stage_plans(
    experiment: ExperimentConfig, checked: Sequence[Prepared], lengths: Mapping[str, Lengths]
) -> tuple[StagePlan, ...]:
    """Return the stages of a checked experiment, each with its numbers.

    Args:
        experiment: as it was read.
        checked: its stages.
        lengths: of the inputs, by task.
    """
    names = ("merges in parameter space", "paths through layers") if hybrid.space_of(experiment) else ("",)
    stages = [_plan(name, prepared, lengths) for name, prepared in zip(names, checked, strict=True)]
    if nested.is_nested(experiment):
        return (_tree(stages[0], experiment),)
    return tuple(stages)


def _plan(name: str, prepared: Prepared, lengths: Mapping[str, Lengths]) -> StagePlan:
    experiment = prepared.experiment
    fitness, estimate, trials = prepared.fitness, experiment.fitness.estimate, experiment.budget.trials
    search, confirmation = fitness.items("search"), fitness.items("confirmation")
    shared = prepared.like.parents() if experiment.merge.vocabulary else tuple(experiment.references.values())
    references = sum(reference in shared for reference in experiment.references.values()) + 1  # their uniform merge
    predicted = experiment.searcher.confirm if isinstance(experiment.searcher, MapConfig) else 0
    front = front_size(trials, len(prepared.objectives) if SEARCHERS[experiment.searcher.kind].multi_objective else 1)
    return StagePlan(
        name=name,
        space=space_line(experiment.search_space),
        genes=dict(Counter(_kind(gene) for gene in prepared.space.genes)),
        searcher=str(experiment.searcher.kind),
        trials=trials,
        searches=Span(trials, trials),
        tasks=tuple(
            TaskPlan(
                task,
                len(items) if estimate is None else min(estimate.items, len(items)),
                len(items),
                len(confirmation[task]),
                lengths[task].prompt if task in lengths else None,
                lengths[task].answer if task in lengths else None,
            )
            for task, items in search.items()
        ),
        references=references,
        calibration=estimate.calibration.models if estimate is not None and not prepared.banks else 0,
        confirmed=Span(references + front.low, references + front.high + predicted),
    )


def _tree(stage: StagePlan, experiment: ExperimentConfig) -> StagePlan:
    """Return the plan of all merges of a tree: each level is scored on each objective about once."""
    parents = len(experiment.parents)
    merges, levels = parents - 1, math.ceil(math.log2(parents))
    of_one = 3 + (experiment.base is not None)  # two parents, their uniform merge, the base
    each = stage.trials / merges
    front = front_size(int(each), 2)
    return replace(
        stage,
        name=f"up a tree: {merges} merges of two",
        genes={kind: round(count * 2 / parents) for kind, count in stage.genes.items()},
        searches=Span(levels * each, stage.trials),
        references=parents + merges * of_one,
        confirmed=Span(levels * (of_one + front.low), merges * (of_one + front.high) + len(experiment.also_score)),
        merges=merges,
    )


def front_size(trials: int, objectives: int) -> Span:
    """Return how many trials may be on the front: assumed, as it is known only at the end.

    Of points in independent objectives (ln n)^(d-1) / (d-1)! are expected (Bentley et al. 1978). It is taken
    several times smaller, as tasks go together, to as many times larger, as trials come to lie near the front: three
    times for two objectives, twice for more (most of some 200 runs on the zoo ended between).
    """
    if objectives == 1 or trials < 2:
        return Span(1, 1)
    expected = math.log(trials) ** (objectives - 1) / math.factorial(objectives - 1)
    factor = 3 if objectives == 2 else 2
    return Span(min(trials, max(1, round(expected / factor))), min(trials, max(3, round(factor * expected))))


def space_line(config: BaseModel) -> str:
    """Return a search space in a line: its kind, and the fields that were set."""
    defaults = {name: field.default for name, field in type(config).model_fields.items()}
    set_fields = {
        name: value
        for name in type(config).model_fields
        if name != "kind" and (value := getattr(config, name)) != defaults[name] and value not in (None, (), {})
    }
    parts = [f"{name} {_value(value)}" for name, value in set_fields.items()]
    return ", ".join([str(getattr(config, "kind", "")), *parts])


def _value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " + ".join(map(_value, value))
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_value(each)}" for key, each in value.items())
    return str(value)


def _kind(gene: Gene) -> str:
    return KINDS.get(type(gene), "integers")
