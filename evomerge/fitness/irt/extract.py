"""Extract: the few items to evaluate on, and how much each speaks for the score on all.

The first step of MERGE^3 (Mencattini et al. 2025, https://arxiv.org/abs/2502.10436), with the choices of tinyBenchmarks
(Maia Polo et al. 2024, https://arxiv.org/abs/2402.14992), of optimal design, and one of our own.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from evomerge.errors import ConfigError, Problem
from evomerge.fitness.irt.bank import Array, ItemParameters
from evomerge.fitness.irt.moments import Rows, ScoreMoments
from evomerge.fitness.irt.names import Choice


@dataclass(frozen=True, eq=False)
class Subset:
    """Some items of a bank, and a linear estimate of the score from the responses to them.

    Attributes:
        rows: of the items in the bank, (items chosen,).
        weights: float64 (items chosen,).
        offset: added to the weighted sum of responses; 0 for weights that are shares.
        fitted: whether the weights are the best linear predictor's, not shares.
        score_optimal: whether the items were chosen by how well they predict the scores of the models at hand.
    """

    rows: Rows
    weights: Array
    offset: float = 0.0
    fitted: bool = False
    score_optimal: bool = False


def extract(
    choice: Choice,
    count: int,
    parameters: ItemParameters,
    responses: Array,
    *,
    at: Array | None = None,
    seed: int = 0,
) -> Subset:
    """Choose items.

    ``random`` weighs all alike. ``stratified`` takes one of each of ``count`` layers of items of like difficulty,
    ``anchors-irt`` and ``anchors-correctness`` the items nearest to the centres of clusters of item parameters, or of
    the models' responses; each weighs what it stands for. ``d-optimal`` and ``a-optimal`` choose one by one what most
    reduces the determinant or the trace of the covariance of abilities, on average over ``at``; ``score-optimal``
    chooses what most reduces the variance of the score over models. These are weighted by the best linear predictor.

    Args:
        choice: how.
        count: how many, at most as many as there are.
        parameters: of all items.
        responses: of the models that the items were calibrated on, float64 (models, items) without gaps.
        at: abilities float64 (any, dimensions) that matter, such as the parents'; those of the population if None.
        seed: of the random choices and of k-means.

    Raises:
        ConfigError: there are fewer items than asked for.
    """
    items = len(parameters)
    if not 0 < count <= items:
        raise ConfigError(Problem(f"{count} items cannot be chosen from {items}", suggestion="ask for fewer items"))
    draw = np.random.default_rng(seed)
    if choice == "random":
        return Subset(np.sort(draw.choice(items, count, replace=False)), np.full(count, 1 / count))
    if choice == "stratified":
        layers = layers_of(responses, count)
        rows = np.array([draw.choice(layer) for layer in layers])
        return Subset(rows, np.array([len(layer) / items for layer in layers]))
    if choice in ("anchors-irt", "anchors-correctness"):
        seen = np.column_stack([parameters.slopes, parameters.intercepts])
        return _anchors(seen if choice == "anchors-irt" else responses.T, count, seed)
    moments = ScoreMoments.of(parameters, responses)
    if choice == "score-optimal":
        rows = moments.best_items(count)
    else:
        at = draw.standard_normal((256, parameters.dimensions)) if at is None else at
        rows = _optimal(choice == "d-optimal", count, parameters, at)
    return Subset(rows, *moments.weights(rows), fitted=True, score_optimal=choice == "score-optimal")


def layers_of(responses: Array, count: int) -> list[Rows]:
    """Return the items in layers of like difficulty, the hardest first, by responses without gaps."""
    return np.array_split(np.argsort(responses.mean(0), kind="stable"), count)


def _anchors(features: Array, count: int, seed: int) -> Subset:
    """Return the items nearest to the centres of k-means clusters, weighed by the clusters' sizes.

    Where fewer items than ``count`` differ, some clusters are empty: their anchors are any other items, without weight.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # "fewer distinct clusters": see above
        found = KMeans(count, n_init=5, random_state=seed).fit(features)
    apart = np.square(features - found.cluster_centers_[found.labels_]).sum(1)
    order = np.argsort(apart, kind="stable")
    nearest = {int(found.labels_[item]): int(item) for item in order[::-1]}
    rows = [nearest[cluster] for cluster in range(count) if cluster in nearest]
    sizes = np.bincount(found.labels_, minlength=count)
    weights = [sizes[cluster] / len(features) for cluster in range(count) if cluster in nearest]
    others = [int(item) for item in order if int(item) not in rows][: count - len(rows)]
    return Subset(np.array(rows + others, dtype=np.intp), np.array(weights + [0.0] * len(others)))


def _optimal(determinant: bool, count: int, parameters: ItemParameters, at: Array) -> Rows:
    """Choose greedily by the covariance of abilities, N(0, I) before any response, at each of ``at``."""
    slopes = parameters.slopes
    logistic = expit(at @ slopes.T + parameters.intercepts)
    span = parameters.upper - parameters.lower
    chance = parameters.lower + span * logistic
    information = (span * logistic * (1 - logistic)) ** 2 / np.maximum(chance * (1 - chance), 1e-12)  # (at, items)
    covariance: Array = np.tile(np.eye(parameters.dimensions), (len(at), 1, 1))
    rows: list[int] = []
    for _ in range(count):
        spread = covariance @ slopes.T  # (at, dimensions, items)
        along = (spread * slopes.T).sum(1)  # (at, items): the variance of the items' logits
        if determinant:
            gains = np.log1p(information * along).mean(0)
        else:
            gains = (information * np.square(spread).sum(1) / (1 + information * along)).mean(0)
        gains[rows] = -1
        best = int(gains.argmax())
        known = spread[:, :, best]
        scale = information[:, best] / (1 + information[:, best] * along[:, best])
        covariance = covariance - scale[:, None, None] * known[:, :, None] * known[:, None, :]
        rows.append(best)
    return np.array(rows, dtype=np.intp)
