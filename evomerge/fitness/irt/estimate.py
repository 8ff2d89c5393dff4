"""Estimate: the score on all items, and how far off that may be, from the responses to a few.

The estimators of tinyBenchmarks (Maia Polo et al. 2024, https://arxiv.org/abs/2402.14992) and of MERGE^3 (Mencattini
et al. 2025, https://arxiv.org/abs/2502.10436), with two things fitted that are constants there. The models that the
items were calibrated on tell what an estimator's errors are: from them come the share of the weighted responses in
gp-IRT and gmp-IRT, and the factor by which the response model's own standard errors are too small or too large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from evomerge.fitness.irt.bank import Array, ItemBank, ItemParameters
from evomerge.fitness.irt.calibrate import refit
from evomerge.fitness.irt.control import SoftScale, differences, fit_scale
from evomerge.fitness.irt.extract import Subset
from evomerge.fitness.irt.likelihood import abilities
from evomerge.fitness.irt.moments import Rows, ScoreMoments
from evomerge.fitness.irt.names import Kind
from evomerge.fitness.irt.variational import predict

FOLDS, FEW, MANY = 5, 200, 1000
NEAR = 150  # models like the parents say how far off estimates may be
GROUP, GROUPS = 50, 16  # at least so many models say how errors depend on the score, in at most so many groups
PRIOR_ERRORS = 4  # models' worth of belief in the response model's standard errors, and in a share of a half
COEFFICIENT_SCALE = 1.0  # of the normal prior on mp-IRT's coefficients, around 1 / parents
_STEPS, _HALVINGS = 200, 20
_MERGED = ("mp-irt", "gmp-irt")


class Estimates(NamedTuple):
    """Scores of models and their standard errors, float64 (models,) each."""

    values: Array
    standard_errors: Array


@dataclass(frozen=True, eq=False)
class Estimator:
    """One way to estimate the score on all items of a bank.

    Attributes:
        kind: ``raw`` is the mean response, ``anchor`` the weighted one, ``p-irt`` the mean of the responses seen and
            the expected others at the ability that was estimated from them, ``mp-irt`` the same at the most likely
            linear combination of the parents' abilities; ``gp-irt`` and ``gmp-irt`` lie between these and ``anchor``.
        parameters: of all items.
        subset: the items asked.
        parents: the parents' abilities, float64 (parents, dimensions); for mp-IRT and gmp-IRT.
        share: of ``anchor`` in gp-IRT and gmp-IRT, in [0, 1].
        inflation: what the response model's variances are multiplied by: pairs of a score and a factor, between which
            factors are interpolated.
        scale: of soft responses, where these are used as control variates.
        controls: what is added to the estimate of what they say that the few items lack of all, and that the responses
            lack of their expectations.
    """

    kind: Kind
    parameters: ItemParameters
    subset: Subset
    parents: Array | None = None
    share: float = 0.5
    inflation: tuple[tuple[float, float], ...] = ((0.5, 1.0),)
    scale: SoftScale | None = None
    controls: tuple[float, float] = (0.0, 0.0)

    def __call__(self, values: Array, gold: Array | None = None) -> Estimates:
        """Return the estimated scores of models.

        Args:
            values: responses to the subset, float64 (models, items chosen).
            gold: soft responses to all items, float64 (models, items), NaN where there is none; needed with a scale.
        """
        parts = self.parts(values)
        found = parts.mixed(self.kind, self.share)
        if self.scale is not None and gold is not None:
            found = found + differences(self.scale(gold), values, self.subset) @ self.controls
        at, factor = np.array(self.inflation).T
        factors = np.interp(found, at, factor)
        return Estimates(np.clip(found, 0, 1), np.sqrt(factors * parts.variances))

    def parts(self, values: Array) -> _Parts:
        """Return what the kinds of estimates are made of."""
        merged = self.parents if self.kind in _MERGED else None
        scores, variances = expected_scores(self.parameters, self.subset.rows, values, merged)
        return _Parts(values.mean(1), values @ self.subset.weights + self.subset.offset, scores, variances)


class _Parts(NamedTuple):
    raw: Array
    anchors: Array
    scores: Array
    variances: Array

    def mixed(self, kind: Kind, share: float) -> Array:
        of_anchors = {"raw": 0.0, "anchor": 1.0, "p-irt": 0.0, "mp-irt": 0.0}.get(kind, share)
        return self.raw if kind == "raw" else self.scores + of_anchors * (self.anchors - self.scores)


def fit_estimator(
    kind: Kind, bank: ItemBank, subset: Subset, parents: Array | None = None, soft: Rows | None = None
) -> Estimator:
    """Return an estimator with its share and inflation fitted to the models that the bank was made from.

    Each model's errors are those with score-optimal items and fitted weights that were found without it, in ``FOLDS``
    folds; where models are fewer than ``FEW``, item parameters too. (Items chosen to predict a model's score predict it
    better than others'.) Only models that are merges of the parents say something of mp-IRT's errors; if the bank has
    none, those of p-IRT stand for them.

    Args:
        kind: of the estimator.
        bank: the items and the models they were calibrated on.
        subset: the items asked, with their weights.
        parents: the parents' responses to all items, float64 (parents, items); for mp-IRT and gmp-IRT.
        soft: items, the subset's among them, whose soft responses serve as a control variate; the bank must have them.
    """
    return fit_estimators([kind], bank, subset, parents, soft)[kind]


def fit_estimators(
    kinds: Sequence[Kind],
    bank: ItemBank,
    subset: Subset,
    parents: Array | None = None,
    soft: Rows | None = None,
) -> dict[Kind, Estimator]:
    """Return several kinds of estimators for the work of about one; see `fit_estimator`."""
    judged = judge(kinds, bank, subset, parents, soft)
    return {kind: judged.estimator(kind, parents) for kind in kinds}


@dataclass(frozen=True, eq=False)
class Judged:
    """How models of a bank were estimated without having been calibrated on.

    Attributes:
        bank: the items and the models they were calibrated on.
        subset: the items asked.
        models: rows of the models judged, int64 (judged,).
        scores: on all items, float64 (judged,).
        parts: of their estimates; of mp-IRT's kinds under True, if they were judged by themselves.
        lacks: what soft responses say of the errors, float64 (judged, 2).
        scale: of soft responses.
    """

    bank: ItemBank
    subset: Subset
    models: Rows
    scores: Array
    parts: Mapping[bool, _Parts]
    lacks: Array
    scale: SoftScale | None

    def estimator(self, kind: Kind, parents: Array | None = None) -> Estimator:
        """Return an estimator with its share, its controls and its inflation fitted to these models.

        How far off it may be is judged by the models most like the parents, unless the bank is of their merges: models
        of one kind and time err alike, and on leaderboards merges err less than others of the same score.

        Args:
            kind: of the estimator.
            parents: the parents' responses to all items, float64 (parents, items).
        """
        parts = self.parts.get(kind in _MERGED, self.parts[False])
        gaps = parts.anchors - parts.scores
        share = float(np.clip(_coefficients(self.scores - parts.scores, gaps[:, None])[0], 0, 1))
        mixed = parts.mixed(kind, share)
        controls = _coefficients(self.scores - mixed, self.lacks)
        found = mixed + self.lacks @ controls
        squares = np.square(found - self.scores) / np.maximum(parts.variances, 1e-12)
        like: slice | Rows = slice(None)
        if parents is not None and not self.bank.parents:
            like = _nearest(self.bank.responses[self.models], parents)
        own = None if parents is None else abilities(self.bank.parameters, parents).means
        inflation = _inflation(found[like], squares[like])
        added = float(controls[0]), float(controls[1])
        return Estimator(kind, self.bank.parameters, self.subset, own, share, inflation, self.scale, added)


def judge(
    kinds: Sequence[Kind],
    bank: ItemBank,
    subset: Subset,
    parents: Array | None = None,
    soft: Rows | None = None,
) -> Judged:
    """Estimate the scores of a bank's models, each by what the others tell; see `fit_estimator` for the arguments."""
    merges = np.array([name not in bank.parents for name in bank.models])
    within = parents if bank.parents and merges.any() and set(kinds) & set(_MERGED) else None
    some = merges if within is not None else np.full(len(merges), True)
    scale, chances = None, None
    if soft is not None and bank.gold is not None:
        scale = fit_scale(bank.gold, bank.responses)
        chances = scale(bank.gold)
    judged: list[Rows] = []
    truth: list[Array] = []
    short: list[Array] = []
    found: dict[bool, list[_Parts]] = {True: [], False: []}
    for train, test in _folds(some):
        parameters = refit(bank, bank.responses[train]) if some.sum() < FEW else bank.parameters
        chosen = _found_again(subset, parameters, bank.responses[train])
        responses = completed(parameters, bank.responses[test])
        judged.append(test)
        truth.append(responses.mean(1))
        lacks = np.zeros((len(test), 2))
        if chances is not None and soft is not None:
            asked = np.isin(np.arange(len(parameters)), [*soft, *chosen.rows])
            known_soft = np.where(asked, chances[test], np.nan)
            lacks = np.nan_to_num(differences(known_soft, responses[:, chosen.rows], chosen))  # 0 where none is there
        short.append(lacks)
        for merged in (False, True) if within is not None else (False,):
            basis = abilities(parameters, within).means if within is not None and merged else None
            like = Estimator("mp-irt" if merged else "p-irt", parameters, chosen, basis)
            found[merged].append(like.parts(responses[:, chosen.rows]))
    parts = {
        merged: _Parts(*(np.concatenate(part) for part in zip(*lists, strict=True)))
        for merged, lists in found.items()
        if lists
    }
    return Judged(bank, subset, np.concatenate(judged), np.concatenate(truth), parts, np.concatenate(short), scale)


def _nearest(responses: Array, parents: Array) -> Rows:
    """Return the ``NEAR`` models whose responses, (models, items), agree most with the parents', or all."""
    apart = np.nanmean(np.abs(responses[:, None] - parents), axis=(1, 2))
    return np.sort(np.argsort(apart, kind="stable")[:NEAR])


def _coefficients(errors: Array, of: Array) -> Array:
    """Return how much of each column of ``of``, (models, any), makes up for errors, (models,).

    By least squares, drawn towards a half where models are few.
    """
    belief = np.diag(PRIOR_ERRORS * of.var(0) + 1e-12)
    found = np.linalg.solve(of.T @ of + belief, of.T @ errors + belief @ np.full(of.shape[1], 0.5))
    found[~of.any(0)] = 0
    return np.asarray(found, dtype=np.float64)


def _inflation(scores: Array, squares: Array) -> tuple[tuple[float, float], ...]:
    """Return factors by score from squared errors in units of the response model's variances, (models,) each.

    Where models are many, they are judged in groups of like scores.
    """
    everywhere = float((squares.sum() + PRIOR_ERRORS) / (len(squares) + PRIOR_ERRORS))
    groups = np.array_split(np.argsort(scores, kind="stable"), np.clip(len(scores) // GROUP, 1, GROUPS))
    if len(groups) == 1:
        return ((float(scores.mean()), everywhere),)
    return tuple(
        (
            float(scores[group].mean()),
            float((squares[group].sum() + PRIOR_ERRORS * everywhere) / (len(group) + PRIOR_ERRORS)),
        )
        for group in groups
    )


def _found_again(subset: Subset, parameters: ItemParameters, responses: Array) -> Subset:
    """Return what other models, float64 (models, items), would have had chosen, and the weights fitted to them."""
    if not subset.fitted:
        return subset
    moments = ScoreMoments.of(parameters, completed(parameters, responses))
    rows = moments.best_items(len(subset.rows)) if subset.score_optimal else subset.rows
    return Subset(rows, *moments.weights(rows), fitted=True)


def _folds(judged: npt.NDArray[np.bool_]) -> list[tuple[Rows, Rows]]:
    """Return (models to fit, models to judge) in turn; of very many, some are judged."""
    models, some = np.arange(len(judged)), np.flatnonzero(judged)
    shuffled = np.random.default_rng(0).permutation(some[:: math.ceil(len(some) / MANY)])
    return [(np.setdiff1d(models, part), part) for part in np.array_split(shuffled, FOLDS) if len(part)]


def expected_scores(
    parameters: ItemParameters, rows: Rows, values: Array, parents: Array | None = None
) -> tuple[Array, Array]:
    """Return p-IRT's scores (or, given the parents' abilities, mp-IRT's) and their variances, (models,) each.

    The variance is that of the ability, by its effect on the expected score, and of the responses not seen.

    Args:
        parameters: of all items.
        rows: of the items that were asked.
        values: the responses to them, float64 (models, items asked) in [0, 1].
        parents: float64 (parents, dimensions).
    """
    asked, count = parameters.chosen(rows), len(parameters)
    if parents is None:
        found = abilities(asked, values)
        means, covariances = found.means, found.covariances
    else:
        means, covariances = merged_abilities(asked, values, parents)
    logistic = predict(parameters, means, covariances)
    chance = parameters.lower + (parameters.upper - parameters.lower) * logistic
    slope = (parameters.upper - parameters.lower) * logistic * (1 - logistic)
    chance[:, rows], slope[:, rows] = values, 0
    unseen = chance * (1 - chance)
    unseen[:, rows] = 0
    gradient = slope @ parameters.slopes / count
    variances = np.einsum("md,mde,me->m", gradient, covariances, gradient) + unseen.sum(1) / count**2
    return chance.mean(1), variances


def merged_abilities(asked: ItemParameters, values: Array, parents: Array) -> tuple[Array, Array]:
    """Return models' abilities Σ λ θ, (models, dimensions), and covariances, (models, dimensions, dimensions).

    The coefficients λ of the parents' abilities θ are the most likely ones under a wide normal prior (without which
    responses that are all right would send them to infinity), neither positive nor summing to 1; their uncertainty is
    Laplace's. MERGE^3's equation 5 with this prior.

    Args:
        asked: parameters of the items asked.
        values: responses to them, float64 (models, items asked) in [0, 1].
        parents: float64 (parents, dimensions).
    """
    design = asked.slopes @ parents.T  # (items, parents)
    count = len(parents)
    centre = np.full(count, 1 / count)
    weights = np.tile(centre, (len(values), 1))
    right, wrong, rate = _chances(asked, weights @ design.T)
    height = _log_posterior(values, right, wrong, weights - centre)
    for _ in range(_STEPS):
        gradient = (values * rate / right - (1 - values) * rate / wrong) @ design
        gradient -= (weights - centre) / COEFFICIENT_SCALE**2
        precision = np.einsum("mi,ip,iq->mpq", rate**2 / (right * wrong), design, design)
        precision += np.eye(count) / COEFFICIENT_SCALE**2
        step = np.linalg.solve(precision, gradient[:, :, None])[:, :, 0]
        step /= np.maximum(1, np.linalg.norm(step, axis=1, keepdims=True))
        for _ in range(_HALVINGS):  # where steep items are far from undecided, a whole step may go too far, and back
            moved = weights + step
            right, wrong, rate = _chances(asked, moved @ design.T)
            raised = _log_posterior(values, right, wrong, moved - centre)
            lower = raised < height - 1e-9
            if not lower.any():
                break
            step[lower] /= 2
        weights, height = moved, raised
        if np.abs(step).max() < 1e-8:
            break
    return weights @ parents, np.einsum("pd,mpq,qe->mde", parents, np.linalg.inv(precision), parents)


def _chances(asked: ItemParameters, logits: Array) -> tuple[Array, Array, Array]:
    """Return P(correct), P(wrong), both above 0, and P(correct)'s derivative by the logit, (models, items) each.

    Args:
        asked: parameters of the items asked.
        logits: without intercepts, float64 (models, items asked).
    """
    span, rise, fall = asked.upper - asked.lower, expit(logits + asked.intercepts), expit(-logits - asked.intercepts)
    right, wrong = asked.lower + span * rise, 1 - asked.upper + span * fall
    return np.maximum(right, 1e-300), np.maximum(wrong, 1e-300), span * rise * fall


def _log_posterior(values: Array, right: Array, wrong: Array, off_centre: Array) -> Array:
    """Return the log posterior of mp-IRT's coefficients up to a constant, (models,)."""
    likelihood: Array = (values * np.log(right) + (1 - values) * np.log(wrong)).sum(1)
    return likelihood - np.square(off_centre).sum(1) / (2 * COEFFICIENT_SCALE**2)


def completed(parameters: ItemParameters, responses: Array) -> Array:
    """Return responses with what is missing filled in by its expectation."""
    missing = np.isnan(responses)
    if not missing.any():
        return responses
    found = abilities(parameters, responses)
    chance = predict(parameters, found.means, found.covariances)
    filled: Array = np.where(missing, parameters.lower + (parameters.upper - parameters.lower) * chance, responses)
    return filled
