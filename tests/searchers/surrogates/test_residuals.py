"""Gaussian processes over what quadratics miss, against scikit-learn's."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from evomerge.searchers.surrogates.quadratic import fit
from evomerge.searchers.surrogates.residuals import LENGTHS, SHARES, Corrected, corrected


def bumpy(points):
    x = 2 * points - 1
    return expit(1 - (x**2).sum(1) + 0.5 * x[:, 0]) + 0.05 * np.sin(9 * points[:, 0]) * np.cos(7 * points[:, -1])


def evaluated(count=40, dimensions=2, noise=0.0):
    draw = np.random.default_rng(0)
    points = draw.random((count, dimensions))
    return points, bumpy(points) + noise * draw.normal(size=count)


def regressor(found: Corrected, noise):
    """Return scikit-learn's process with the parameters that were found."""
    variance = found.quadratic.misfit**2
    kernel = ConstantKernel(found.share * variance) * Matern(found.length, nu=2.5)
    alpha = (1 - found.share) * variance + noise**2 + 1e-9 * variance
    return GaussianProcessRegressor(kernel, alpha=alpha, optimizer=None)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_predictions_are_those_of_scikit_learn(noise):
    points, values = evaluated(noise=noise)
    errors = np.full(len(values), noise)
    quadratic = fit(points, values, "logit", errors)
    found = corrected(quadratic, points, values, errors)
    assert found.share > 0
    peer = regressor(found, errors).fit(points, values - quadratic(points))
    new = np.random.default_rng(1).random((100, 2))
    mean, deviation = peer.predict(new, return_std=True)
    np.testing.assert_allclose(found(new), np.clip(quadratic(new) + mean, 0, 1), atol=1e-10)
    np.testing.assert_allclose(found.errors(new), np.hypot(quadratic.errors(new), deviation), atol=1e-7)


def test_the_likeliest_of_the_choices_is_taken():
    points, values = evaluated()
    quadratic = fit(points, values, "logit")
    found = corrected(quadratic, points, values, np.zeros(len(values)))
    residuals, variance = values - quadratic(points), quadratic.misfit**2

    def likelihood(length, share):
        kernel = ConstantKernel(max(share, 1e-300) * variance) * Matern(length, nu=2.5)
        noise = ((1 - share) * variance + 1e-9 * variance) * np.eye(len(points))
        return multivariate_normal(cov=kernel(points) + noise).logpdf(residuals)

    best = max(((length * 2**0.5, share) for length in LENGTHS for share in SHARES), key=lambda at: likelihood(*at))
    assert (found.length, found.share) == pytest.approx(best)


def test_bumps_are_met_where_neighbours_were():
    points, values = evaluated(80)
    quadratic = fit(points, values, "logit")
    found = corrected(quadratic, points, values, np.zeros(len(values)))
    new = np.random.default_rng(2).random((500, 2))
    missed, left = (np.sqrt(np.mean((each(new) - bumpy(new)) ** 2)) for each in (quadratic, found))
    assert left < 0.6 * missed
    standardised = (found(new) - bumpy(new)) / np.hypot(found.errors(new), found.misfit)
    assert 0.85 < np.mean(np.abs(standardised) < 1.96) <= 1


def test_what_is_quadratic_is_left_alone():
    draw = np.random.default_rng(0)
    points = draw.random((30, 2))
    values = 1 + points @ [1.0, -2.0] + points[:, 0] ** 2
    found = corrected(fit(points, values), points, values, np.zeros(30))
    new = draw.random((50, 2))
    np.testing.assert_allclose(found(new), 1 + new @ [1.0, -2.0] + new[:, 0] ** 2, atol=1e-6)


def test_noise_is_not_taken_for_bumps():
    """Residuals that are all noise are shared with no neighbour, or with next to none of their size."""
    shares = []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        points = draw.random((40, 2))
        values = points @ [1.0, -2.0] + 0.1 * draw.normal(size=40)
        shares.append(corrected(fit(points, values), points, values, np.zeros(40)).share)
    assert np.mean(shares) < 0.25


@pytest.mark.parametrize("count", [2, 6, 8])
def test_too_few_evaluations_tell_no_bumps(count):
    points, values = evaluated(count)
    quadratic = fit(points, values, "logit")
    found = corrected(quadratic, points, values, np.zeros(count))
    new = np.random.default_rng(1).random((20, 2))
    assert found.share == 0
    assert found.misfit == quadratic.misfit
    np.testing.assert_array_equal(found(new), quadratic(new))
    np.testing.assert_array_equal(found.errors(new), quadratic.errors(new))


def test_equal_points_and_equal_values():
    points = np.repeat(np.random.default_rng(0).random((6, 2)), 2, axis=0)
    found = corrected(fit(points, np.full(12, 0.5), "logit"), points, np.full(12, 0.5), np.zeros(12))
    assert found(points) == pytest.approx(np.full(12, 0.5))


@pytest.mark.parametrize("link", ["identity", "logit", "softplus"])
@pytest.mark.parametrize("spread", ["scattered", "repeated", "one place", "on a line", "on a grid"])
def test_degenerate_evaluations_give_finite_numbers(spread, link):
    """Points that repeat, values that are all equal or that contradict each other, errors of any size, any units."""
    for seed in range(12):
        draw = np.random.default_rng(seed)
        count, dimensions = draw.integers(2, 40), draw.integers(1, 5)
        points = draw.random((count, dimensions))
        points = {
            "scattered": points,
            "repeated": points[draw.integers(0, max(1, count // 3), count)],
            "one place": np.repeat(points[:1], count, axis=0),
            "on a line": np.repeat(points[:, :1], dimensions, axis=1),
            "on a grid": points.round(1),
        }[spread]
        unit = 1.0 if link == "logit" else 10.0 ** draw.integers(-12, 13)
        values = (draw.random(count), np.full(count, 0.5), 1.0 * (draw.random(count) > 0.5))[seed % 3] * unit
        errors = (np.zeros(count), np.full(count, 0.05), 10.0 ** draw.integers(-9, 6, count))[seed // 3 % 3] * unit
        quadratic = fit(points, values, link, errors)
        found = corrected(quadratic, points, values, errors)
        new = np.concatenate([draw.random((20, dimensions)), points])
        assert np.isfinite(found(new)).all()
        unknown = np.hypot(quadratic.errors(new), quadratic.misfit)
        assert (found.errors(new) <= unknown * (1 + 1e-9)).all()
        assert found.misfit <= quadratic.misfit


def test_units_do_not_matter():
    points, values = evaluated(noise=0.01)
    errors = np.full(len(values), 0.01)
    one = corrected(fit(points, values, "identity", errors), points, values, errors)
    new = np.random.default_rng(1).random((50, 2))
    for unit in (1e-6, 1e6):
        other = corrected(fit(points, unit * values, "identity", unit * errors), points, unit * values, unit * errors)
        assert (other.length, other.share) == (one.length, one.share)
        np.testing.assert_allclose(other(new), unit * one(new), rtol=1e-6)
        np.testing.assert_allclose(other.errors(new), unit * one.errors(new), rtol=1e-6)
