"""What surrogates say once they are fitted: how good they are, and the front that they predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from evomerge.search_spaces.genes import Value
from evomerge.searchers.surrogates.links import LinkName
from evomerge.searchers.surrogates.quadratic import Quadratic, terms_of

POOR = 0.5  # of the variance explained when an evaluation is left out: below, predictions say little


@dataclass(frozen=True)
class Prediction:
    """A genome with its predicted objectives, and their standard errors, what a quadratic cannot say included."""

    genome: dict[str, Value]
    objectives: dict[str, float]
    standard_errors: dict[str, float]


@dataclass(frozen=True)
class SurrogateFacts:
    """How well the surrogate of one objective fits; `Quadratic` explains the numbers."""

    link: LinkName
    evaluations: int
    coefficients: int
    ridge: float
    misfit: float
    r2: float
    r2_left_out: float
    r2_error: float
    error_left_out: float

    @property
    def is_poor(self) -> bool:
        """Whether a quadratic does not describe the objective: the others hardly tell what one evaluation gives.

        By the one-standard-error rule (Breiman, Friedman, Olshen and Stone 1984): what is explained of evaluations left
        out is itself an estimate, from as many misses as there are evaluations, so it must exceed `POOR` by its
        standard error. Few evaluations, or few misses that make most of the error, are no reason for trust.
        """
        return self.r2_left_out - self.r2_error < POOR


def facts_of(surrogate: Quadratic, evaluations: int) -> SurrogateFacts:
    """Return what is told of a surrogate that was fitted to so many evaluations."""
    return SurrogateFacts(
        link=surrogate.link.name,
        evaluations=evaluations,
        coefficients=terms_of(len(surrogate.linear)),
        ridge=surrogate.ridge,
        misfit=surrogate.misfit,
        r2=surrogate.r2,
        r2_left_out=surrogate.r2_left_out,
        r2_error=surrogate.r2_error,
        error_left_out=surrogate.error_left_out,
    )


@dataclass(frozen=True)
class Explanation:
    """What a searcher that fits surrogates knows after its trials.

    Attributes:
        surrogates: of each objective.
        front: predicted, any number of points.
        trials: what each trial told is predicted to be, from all of them, by trial number.
        foretold: what trials were predicted to be when they were asked, by trial number.
        confirm: which points of the front, by their places in it, are to be put to the test on the confirmation items,
            the most promising first; none is a trial's.
    """

    surrogates: Mapping[str, SurrogateFacts]
    front: Sequence[Prediction]
    trials: Mapping[int, Prediction]
    foretold: Mapping[int, Prediction]
    confirm: Sequence[int] = ()


@runtime_checkable
class Explains(Protocol):
    """A searcher that can say what it knows."""

    def explanation(self) -> Explanation | None:
        """Return what is known from all that was told; None before there is anything to say."""


def described(surrogates: Mapping[str, SurrogateFacts]) -> list[str]:
    """Return a line about each surrogate, with a warning where it cannot be trusted."""
    lines = []
    for name, facts in surrogates.items():
        line = (
            f"{name}: {facts.link} quadratic, R² {facts.r2:.3f}; each evaluation predicted from the others: "
            f"R² {facts.r2_left_out:.3f}, error {facts.error_left_out:.3g}"
        )
        if facts.is_poor:
            line += " - a quadratic does not describe it, so do not trust its predictions: evaluate more, or use nsga2"
        lines.append(line)
    return lines
