"""How much each gene matters for an objective, and in which direction.

fANOVA (Hutter, Hoos & Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter Importance",
https://proceedings.mlr.press/v32/hutter14.html), as in Optuna: a random forest is fitted to the trials and
the variance of its prediction is split by gene. The direction is Spearman's rank correlation of gene and
objective.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import create_trial
from scipy.stats import spearmanr

from evomerge.reports.summary import ObjectiveInfo, TrialRow
from evomerge.search_spaces.genes import Value

FEWEST_TRIALS = 10
MOST_TRIALS = 500  # the forest's cost grows with the trials: 500 take about two seconds
TREES = 16
MEAN = "mean of objectives"

_DEPTH = re.compile(r"\.(layer|block|knot|point)(\d+)(?=\.|$)")


@dataclass(frozen=True)
class GeneImportance:
    """A gene's share (0 to 1) of the explained variance.

    ``trend`` in [-1, 1] is positive when more of the gene goes with better scores; None for choices.
    """

    gene: str
    share: float
    trend: float | None


@dataclass(frozen=True)
class DepthTable:
    """Values of genes that repeat over depth: ``values[row][column]``, gene family × layer; NaN if absent."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


def importance(
    trials: Sequence[TrialRow], objectives: Sequence[ObjectiveInfo]
) -> dict[str, list[GeneImportance]]:
    """Return each objective's gene importances, the largest first; with several objectives, their mean's too.

    Empty when fewer than ``FEWEST_TRIALS`` trials have finite objectives or no gene varies. At most
    ``MOST_TRIALS`` trials are used, evenly spaced. Deterministic.
    """
    usable = [t for t in trials if t.objectives and all(map(math.isfinite, t.objectives.values()))]
    if len(usable) < FEWEST_TRIALS:
        return {}
    chosen = [usable[i] for i in np.unique(np.linspace(0, len(usable) - 1, MOST_TRIALS).round().astype(int))]
    distributions = _distributions(chosen)
    if not distributions:
        return {}
    targets = _targets(chosen, objectives)
    return {name: _ranked(chosen, distributions, values) for name, values in targets.items()}


def _targets(trials: Sequence[TrialRow], objectives: Sequence[ObjectiveInfo]) -> dict[str, np.ndarray]:
    columns = {o.name: o.sign * np.array([(t.objectives or {})[o.name] for t in trials]) for o in objectives}
    if len(objectives) < 2:
        return columns
    # Objectives on different scales (accuracy, perplexity) weigh the same in the mean once standardised.
    return {MEAN: np.mean([_standardised(values) for values in columns.values()], axis=0), **columns}


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() or 1.0)


def _distributions(trials: Sequence[TrialRow]) -> dict[str, BaseDistribution]:
    """Return the observed range of each gene that varies (a constant gene explains nothing)."""
    shared = [name for name in trials[0].genome if all(name in trial.genome for trial in trials)]
    ranges = {name: _range([trial.genome[name] for trial in trials]) for name in shared}
    return {name: found for name, found in ranges.items() if found is not None}


def _range(values: Sequence[Value]) -> BaseDistribution | None:
    if any(isinstance(value, str) for value in values):
        choices = sorted({str(value) for value in values})
        return CategoricalDistribution(choices) if len(choices) > 1 else None
    numbers = [float(value) for value in values]
    if min(numbers) == max(numbers) or not all(map(math.isfinite, numbers)):
        return None
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(min(numbers)), int(max(numbers)))
    return FloatDistribution(min(numbers), max(numbers))


def _ranked(
    trials: Sequence[TrialRow], distributions: Mapping[str, BaseDistribution], target: np.ndarray
) -> list[GeneImportance]:
    flat = np.ptp(target) == 0
    shares = dict.fromkeys(distributions, 0.0) if flat else _fanova(trials, distributions, target)
    found = [GeneImportance(gene, shares[gene], _trend(gene, trials, target)) for gene in distributions]
    return sorted(found, key=lambda row: (-row.share, row.gene))


def _fanova(
    trials: Sequence[TrialRow], distributions: Mapping[str, BaseDistribution], target: np.ndarray
) -> dict[str, float]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for trial, value in zip(trials, target, strict=True):
            params, value = _params(trial, distributions), float(value)
            study.add_trial(create_trial(params=params, distributions=dict(distributions), value=value))
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {gene: float(found.get(gene, 0.0)) for gene in distributions}


def _params(trial: TrialRow, distributions: Mapping[str, BaseDistribution]) -> dict[str, Value]:
    return {
        name: str(trial.genome[name]) if isinstance(kind, CategoricalDistribution) else trial.genome[name]
        for name, kind in distributions.items()
    }


def _trend(gene: str, trials: Sequence[TrialRow], target: np.ndarray) -> float | None:
    values = [trial.genome[gene] for trial in trials]
    if any(isinstance(value, str) for value in values) or np.ptp(target) == 0:
        return None
    return float(spearmanr(np.array(values, dtype=float), target).statistic)


def over_depth(values: Mapping[str, float]) -> DepthTable | None:
    """Arrange genes named ``parent.parameter.layerN.group`` as family × depth; None below two depths."""
    cells: dict[tuple[str, str], float] = {}
    depths: dict[str, int] = {}
    for gene, value in values.items():
        match = _DEPTH.search(gene)
        if match:
            column = f"{match[1]} {match[2]}"
            depths[column] = int(match[2])
            cells[gene[: match.start()] + gene[match.end() :], column] = value
    columns = tuple(sorted(depths, key=lambda column: depths[column]))
    if len(columns) < 2:
        return None
    rows = tuple(dict.fromkeys(row for row, _ in cells))
    return DepthTable(
        rows, columns, tuple(tuple(cells.get((r, c), float("nan")) for c in columns) for r in rows)
    )
