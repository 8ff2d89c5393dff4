"""How much each gene matters for an objective, and in which direction.

fANOVA (Hutter, Hoos & Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter Importance",
https://proceedings.mlr.press/v32/hutter14.html), as in Optuna: a random forest is fitted to the trials and
the variance of its prediction is split by gene. The direction is Spearman's rank correlation of gene and
objective.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import create_trial
from scipy.stats import spearmanr

from evomerge.reports.summary import ObjectiveInfo, TrialRow
from evomerge.search_spaces.genes import Value

FEWEST_TRIALS = 10
MOST_TRIALS = 500  # the forest's cost grows with the trials: 500 take about two seconds
TREES, DEPTH = 16, 8
MEAN = "mean of objectives"

_DEPTH = re.compile(r"\.(?:(layer|block)(\d+)|outside)(?=\.|$)")


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
    """Values of genes that repeat over depth: ``values[row][column]``, gene family × depth; NaN if absent.

    ``axis`` says what depth counts: ``layer`` or ``block``.
    """

    axis: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


def importance(
    trials: Sequence[TrialRow], objectives: Sequence[ObjectiveInfo], without: Collection[str] = ()
) -> dict[str, list[GeneImportance]]:
    """Return each objective's gene importances, the largest first; with several objectives, their mean's too.

    Args:
        trials: of the run.
        objectives: of the run.
        without: genes that are left out.

    Empty when fewer than ``FEWEST_TRIALS`` trials have finite objectives or no gene varies. At most
    ``MOST_TRIALS`` trials are used, evenly spaced. Deterministic.
    """
    usable = [t for t in trials if t.objectives and all(map(math.isfinite, t.objectives.values()))]
    if len(usable) < FEWEST_TRIALS:
        return {}
    chosen = [usable[i] for i in np.unique(np.linspace(0, len(usable) - 1, MOST_TRIALS).round().astype(int))]
    distributions = {name: found for name, found in _distributions(chosen).items() if name not in without}
    if not distributions:
        return {}
    targets = _targets(chosen, objectives)
    shares = _fanova(chosen, distributions, targets)
    return {name: _ranked(chosen, shares[name], values) for name, values in targets.items()}


def _targets(trials: Sequence[TrialRow], objectives: Sequence[ObjectiveInfo]) -> dict[str, np.ndarray]:
    columns = {o.name: o.sign * np.array([(t.objectives or {})[o.name] for t in trials]) for o in objectives}
    if len(objectives) < 2:
        return columns
    # Objectives on different scales (accuracy, perplexity) weigh the same in the mean once standardised.
    weights = [objective.weight for objective in objectives]
    standardised = [_standardised(values) for values in columns.values()]
    return {MEAN: np.average(standardised, axis=0, weights=weights if any(weights) else None), **columns}


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


def _ranked(trials: Sequence[TrialRow], shares: Mapping[str, float], target: np.ndarray) -> list[GeneImportance]:
    found = [GeneImportance(gene, share, _trend(gene, trials, target)) for gene, share in shares.items()]
    return sorted(found, key=lambda row: (-row.share, row.gene))


def _fanova(
    trials: Sequence[TrialRow], distributions: dict[str, BaseDistribution], targets: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Return target → gene → share; a target that is the same in all trials has no shares to give."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(directions=["maximize"] * len(targets))
        for trial, values in zip(trials, np.stack(list(targets.values()), axis=1).tolist(), strict=True):
            params = _params(trial, distributions)
            study.add_trial(create_trial(params=params, distributions=distributions, values=values))
        evaluator = FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=0)
        found = {
            name: evaluator.evaluate(study, target=partial(_value, index=index))
            for index, (name, values) in enumerate(targets.items())
            if np.ptp(values) > 0
        }
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: _normalised(found.get(name, {}), distributions) for name in targets}


def _value(trial: optuna.trial.FrozenTrial, index: int) -> float:
    return float(trial.values[index])


def _normalised(shares: Mapping[str, float], genes: Iterable[str]) -> dict[str, float]:
    total = sum(shares.values()) or 1.0
    return {gene: float(shares.get(gene, 0.0)) / total for gene in genes}


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
    """Arrange genes named ``parent.parameter.layerN.group`` as family × depth, in the order of their genome.

    What is ``outside`` the layers comes last; genes with no depth at all are left out. None when there are
    fewer than two depths.
    """
    found = [(gene, _DEPTH.search(gene), value) for gene, value in values.items()]
    cells = {
        (gene[: match.start()] + gene[match.end() :], match[2] or "outside"): value
        for gene, match, value in found
        if match is not None
    }
    columns = sorted({column for _, column in cells}, key=lambda column: (not column.isdigit(), column.zfill(9)))
    axis = next((match[1] for _, match, _ in found if match is not None and match[1]), None)
    if len(columns) < 2 or axis is None:
        return None
    rows = tuple(dict.fromkeys(row for row, _ in cells))
    table = tuple(tuple(cells.get((row, column), math.nan) for column in columns) for row in rows)
    return DepthTable(axis, rows, tuple(columns), table)


def without_depth(values: Mapping[str, float]) -> dict[str, float]:
    """Return the genes that ``over_depth`` leaves out."""
    return {gene: value for gene, value in values.items() if _DEPTH.search(gene) is None}
