"""Links: from what a quadratic says to an objective's values. MAP's activations, with their inverses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

Array: TypeAlias = npt.NDArray[np.float64]
LinkName: TypeAlias = Literal["identity", "logit", "softplus"]
LINK_NAMES: tuple[LinkName, ...] = get_args(LinkName)

_EDGE = 1e-12  # starting values keep this far from where a link ends, where values tell nothing of the line


@dataclass(frozen=True)
class Link:
    """A monotone map of the real line onto an objective's range.

    Attributes:
        name: of the link, after the map from values to the line where it has a name.
        value: from the line to values, elementwise.
        slope: its derivative.
        start: from values (clipped into the range) to the line.
    """

    name: LinkName
    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    start: Callable[[Array], Array]


def _softplus(line: Array) -> Array:
    return np.asarray(np.logaddexp(0.0, line))


def _softplus_start(values: Array) -> Array:
    inside = np.maximum(values, _EDGE)
    return np.asarray(inside + np.log(-np.expm1(-inside)))


LINKS: Mapping[LinkName, Link] = MappingProxyType(
    {
        "identity": Link("identity", lambda line: line, np.ones_like, lambda values: values),
        "logit": Link(
            "logit",
            lambda line: np.asarray(expit(line)),
            lambda line: np.asarray(expit(line) * expit(-line)),
            lambda values: np.asarray(logit(np.clip(values, _EDGE, 1 - _EDGE))),
        ),
        "softplus": Link("softplus", _softplus, lambda line: np.asarray(expit(line)), _softplus_start),
    }
)


def suited(values: Array, direction: Literal["maximize", "minimize"]) -> LinkName:
    """Return the link for values of an objective: logit for shares, softplus for losses, else identity.

    Args:
        values: seen so far, float64 (trials,).
        direction: losses are minimised and not negative.
    """
    if values.min() >= 0 and values.max() <= 1:
        return "logit"
    return "softplus" if direction == "minimize" and values.min() >= 0 else "identity"
