"""From responses to item parameters: which model, how many abilities, and what the fit is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from evomerge.errors import ConfigError, Problem
from evomerge.fitness.irt import quadrature_em, variational
from evomerge.fitness.irt.bank import Array, ItemBank, ItemParameters
from evomerge.fitness.irt.quadrature_em import Model
from evomerge.fitness.irt.responses import ResponseMatrix, checked

MODELS: tuple[Model, ...] = ("rasch", "2pl", "3pl")
MAX_DIMENSIONS = 8
HELD_OUT = 0.1  # the share of responses by which the number of dimensions is judged

Dimensions: TypeAlias = int | Literal["auto"]
Report: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What calibration found.

    Attributes:
        parameters: of the items, in the order of the matrix's columns.
        model: the kind of model.
        log_likelihood: of the responses it was made from, abilities integrated out, priors left out; with several
            dimensions a lower bound.
        turns: of the fit.
        converged: whether it came to rest.
        held_out: for each number of dimensions tried, the mean log-likelihood of held-out responses.
    """

    parameters: ItemParameters
    model: Model
    log_likelihood: float
    turns: int
    converged: bool
    held_out: dict[int, float] = field(default_factory=dict)

    def bank(
        self,
        matrix: ResponseMatrix,
        task: str,
        metric: str,
        parents: tuple[str, ...] = (),
        gold: Array | None = None,
    ) -> ItemBank:
        """Return the item bank of a calibration on ``matrix``.

        Args:
            matrix: what it was made from.
            task: of the responses.
            metric: the same.
            parents: the models that all others of the matrix are merges of, if they are.
            gold: soft responses, float64 (models, items).
        """
        made: dict[str, Any] = {
            "model": self.model,
            "dimensions": self.parameters.dimensions,
            "models": len(matrix.models),
            "responses": matrix.seen,
            "log_likelihood": round(self.log_likelihood, 3),
            "converged": self.converged,
        }
        if self.held_out:
            made["held_out_log_likelihood"] = {count: round(value, 6) for count, value in self.held_out.items()}
        return ItemBank(task, metric, matrix.items, self.parameters, matrix.models, matrix.values, parents, gold, made)


def calibrate(
    matrix: ResponseMatrix,
    model: Model = "2pl",
    dimensions: Dimensions = 1,
    *,
    seed: int = 0,
    device: str = "cpu",
    report: Report | None = None,
    keep_constant: bool = False,
) -> Calibration:
    """Fit a response model by marginal maximum a posteriori.

    One ability is integrated by quadrature (:mod:`.quadrature_em`), several by variational Gaussians
    (:mod:`.variational`). Both start from the data alone, so that equal input gives equal output.

    Args:
        matrix: responses of models to items.
        model: ``rasch``, ``2pl`` or ``3pl``; several abilities are known to the 2PL only.
        dimensions: how many abilities; ``auto`` takes as many as make held-out responses more likely.
        seed: chooses the responses that ``auto`` holds out.
        device: where to compute.
        report: told what is being done.
        keep_constant: take items to which all models responded the same; their parameters are the priors' guess.

    Raises:
        ConfigError: the responses cannot be used, or the model does not know so many dimensions.
    """
    tell = report or (lambda _: None)
    if dimensions != "auto" and (dimensions < 1 or (dimensions > 1 and model != "2pl")):
        what = f"{dimensions} dimensions are not known to the model {model!r}"
        raise ConfigError(Problem(what, "--dimensions", "several abilities take --model 2pl; others have 1"))
    constant = matrix.constant_items() if keep_constant else ()
    checked(matrix.without_items(constant), 1 if dimensions == "auto" else dimensions)
    held_out: dict[int, float] = {}
    if dimensions == "auto" and model == "2pl":
        held_out = held_out_likelihoods(matrix, seed=seed, device=device, report=tell)
    count = max(held_out, key=lambda tried: held_out[tried], default=1) if dimensions == "auto" else dimensions
    tell(f"fitting {model} to {len(matrix.models)} models × {len(matrix.items)} items")
    return replace(_fit(matrix.values, model, count, device), held_out=held_out)


def refit(bank: ItemBank, responses: Array) -> ItemParameters:
    """Return the parameters of a bank's items as fitted to other responses, float64 (models, items)."""
    return _fit(responses, bank.made["model"], bank.parameters.dimensions).parameters


def _fit(responses: Array, model: Model, dimensions: int, device: str = "cpu") -> Calibration:
    if dimensions == 1:
        found = quadrature_em.fit(responses, model, device=device)
        return Calibration(found.parameters, model, found.log_likelihood, found.turns, found.converged)
    several = variational.fit(responses, dimensions, device=device)
    return Calibration(several.parameters, model, several.bound, several.turns, several.converged)


def held_out_likelihoods(
    matrix: ResponseMatrix, *, seed: int = 0, device: str = "cpu", report: Report | None = None
) -> dict[int, float]:
    """Return the mean log-likelihood of held-out responses for 1, 2, … dimensions, up to the first that does not help.

    A tenth of the responses is held out; a number of dimensions helps if it raises the likelihood by more than the
    standard error of that gain over models. The last number of dimensions tried is left out unless it helps.

    Args:
        matrix: responses of models to items.
        seed: chooses the responses held out.
        device: where to compute.
        report: told the likelihood of each number of dimensions.
    """
    hidden = (np.random.default_rng(seed).random(matrix.values.shape) < HELD_OUT) & ~np.isnan(matrix.values)
    known = np.where(hidden, np.nan, matrix.values)
    best: Array | None = None
    likelihoods: dict[int, float] = {}
    for count in range(1, min(MAX_DIMENSIONS, len(matrix.items)) + 1):
        fit = variational.fit(known, count, device=device)
        expected = variational.predict(fit.parameters, fit.means, fit.covariances)
        expected = np.clip(expected, 1e-9, 1 - 1e-9)
        logs = matrix.values * np.log(expected) + (1 - matrix.values) * np.log1p(-expected)
        by_model = np.where(hidden, logs, 0).sum(1)
        mean = float(by_model.sum() / max(hidden.sum(), 1))
        if report:
            report(f"{count} dimension{'s' * (count > 1)}: held-out log-likelihood {mean:.4f} a response")
        if best is not None:
            gain = by_model - best
            if gain.sum() <= gain.std() * np.sqrt(len(gain)):
                break
        best, likelihoods[count] = by_model, mean
    return likelihoods
