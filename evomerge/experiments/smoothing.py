"""What trials with like genomes say of each other: estimates smoothed over the search space.

A trial's own estimate comes from a few items. A Gaussian process over genomes, told each trial's estimate with its
standard error, weighs it against those of the neighbours (kriging with known noise; Ankenman, Nelson and Staum 2010,
"Stochastic kriging for simulation metamodeling").
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from evomerge.search_spaces.genes import Gene, Genome
from evomerge.searchers.box import UnitBox

FEWEST = 10  # estimates before anything is smoothed
GROWTH = 1.3  # the kernel is fitted anew when there are so many times more estimates
NOISE_SHARES = (0.1, 0.3, 1.0)  # what standard errors may hold of noise, the rest being bias
MOST = 1000  # estimates taken into account, the latest
OWN_SCALES = 32  # up to so many genes, each has a length scale of its own
_LEAST_ERROR = 1e-3

Array = npt.NDArray[np.float64]


class Noisy(NamedTuple):
    """A genome's estimate and its standard error."""

    genome: Genome
    value: float
    standard_error: float


class Smoother:
    """One objective's estimates, in [0, 1], over a search space.

    A deterministic function of what it was told, in order.

    Args:
        genes: of the search space.
    """

    def __init__(self, genes: Sequence[Gene]) -> None:
        self._box = UnitBox(genes)
        self._points: list[Array] = []
        self._values: list[float] = []
        self._errors: list[float] = []
        self._kernels: dict[int, tuple[float, Any]] = {}

    def tell(self, estimate: Noisy) -> None:
        """Take in a trial's own estimate."""
        self._points.append(self._box.point(estimate.genome))
        self._values.append(estimate.value)
        self._errors.append(max(estimate.standard_error, _LEAST_ERROR))

    def smoothed(self, genomes: Sequence[Genome], also: Noisy | None = None) -> list[tuple[float, float]] | None:
        """Return the smoothed values and standard errors of genomes; None while too little is known.

        The errors include what a genome may differ from its neighbourhood.

        Args:
            genomes: any.
            also: an estimate to take into account this once.
        """
        points, known, errors = self._points, self._values, self._errors
        if also is not None:
            points, known = [*points, self._box.point(also.genome)], [*known, also.value]
            errors = [*errors, max(also.standard_error, _LEAST_ERROR)]
        if len(self._values) < FEWEST:
            return None
        latest = slice(-MOST, None)
        process, centre, scale = _process(points[latest], known[latest], errors[latest], *self._kernel())
        asked = np.array([self._box.point(genome) for genome in genomes])
        means, deviations = process.predict(asked, return_std=True)
        values = np.clip(centre + scale * means, 0, 1)
        return [(float(value), float(scale * d)) for value, d in zip(values, deviations, strict=True)]

    def _kernel(self) -> tuple[float, Any]:
        """Return the share of noise in the errors, and the kernel, both of largest likelihood.

        They are fitted when there are as many estimates as a fixed schedule says, so that they do not depend on when
        they are asked for, and a resumed run has the same.
        """
        count = FEWEST
        while int(count * GROWTH) <= len(self._values):
            count = int(count * GROWTH)
        if count not in self._kernels:
            parts = slice(max(0, count - MOST), count)
            fits = [
                (share, _process(self._points[parts], self._values[parts], self._errors[parts], share, None)[0])
                for share in NOISE_SHARES
            ]
            share, best = max(fits, key=lambda fit: float(fit[1].log_marginal_likelihood_value_))
            self._kernels = {count: (share, best.kernel_)}
        return self._kernels[count]


def _process(
    points: Sequence[Array], values: Sequence[float], errors: Sequence[float], share: float, kernel: Any
) -> tuple[Any, float, float]:
    """Return a Gaussian process on standardised values, and their centre and scale.

    Args:
        points: genomes in the unit box.
        values: their estimates.
        errors: standard errors of these.
        share: of their squares that is noise; the rest is bias that neighbours have in common.
        kernel: fitted if None.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    known = np.array(values)
    centre, scale = float(known.mean()), max(float(known.std()), _LEAST_ERROR)
    many = len(points[0]) > OWN_SCALES
    scales = np.sqrt(len(points[0])) / 4 if many else np.full(len(points[0]), 0.5)
    prior = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(scales, (5e-2, 1e1))
    process = GaussianProcessRegressor(
        kernel or prior + WhiteKernel(1e-2, (1e-5, 1e0)),
        alpha=share * np.square(np.array(errors) / scale),
        optimizer=None if kernel else "fmin_l_bfgs_b",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # length scales at their bounds: genes without effect
        process.fit(np.array(points), (known - centre) / scale)
    return process, centre, scale
