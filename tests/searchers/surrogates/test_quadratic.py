"""Quadratic surrogates: exact recovery, the same optimum as scipy's, leave-one-out and the posterior by definition."""

import numpy as np
import pytest
from scipy.optimize import brentq, curve_fit, least_squares
from scipy.special import expit

from evomerge.searchers.surrogates.designs import design
from evomerge.searchers.surrogates.links import LINK_NAMES, LINKS
from evomerge.searchers.surrogates.quadratic import features, fit, terms_of

SCALES = {"identity": (1.0, 1e6, 1e-6), "logit": (1.0, 3.0), "softplus": (1.0, 1e-6)}


def coefficients(dimensions, seed=0):
    return np.random.default_rng(seed).normal(size=terms_of(dimensions))


def noisy(link, dimensions, count, sigma, seed=0):
    """Points and values that a quadratic describes but for normal noise on the line."""
    draw = np.random.default_rng(seed)
    points = draw.random((count, dimensions))
    line = features(points) @ coefficients(dimensions, seed) + sigma * draw.normal(size=count)
    return points, LINKS[link].value(line)


def close(found, exact, tolerance=1e-6):
    assert np.abs(found - exact).max() <= tolerance * np.ptp(exact)


def weighted_problem(points, values, link, errors, misfit, ridge, offset, information):
    """The sum of squares that `fit` says it minimises, for scipy: residuals of all coefficients."""
    terms = features(points)
    spread = np.sqrt(errors**2 + misfit**2)
    prior = np.sqrt(ridge * information) / np.r_[100.0, np.ones(terms.shape[1] - 1)] / spread.min()

    def residuals(at):
        return np.concatenate([(values - LINKS[link].value(offset + terms @ at)) / spread, prior * at])

    return residuals


# Recovery


@pytest.mark.parametrize("dimensions", range(1, 7))
@pytest.mark.parametrize(("link", "scale"), [(link, scale) for link in LINK_NAMES for scale in SCALES[link]])
@pytest.mark.parametrize("name", ["latin-hypercube", "sobol"])
def test_a_quadratic_is_recovered_from_just_more_evaluations_than_coefficients(link, scale, dimensions, name):
    points = design(name, terms_of(dimensions) + 1, dimensions, 1)
    fresh = design("latin-hypercube", 100, dimensions, 9)
    truth = coefficients(dimensions)
    value = LINKS[link].value
    surrogate = fit(points, value(scale * (features(points) @ truth)), link)
    close(surrogate(fresh), value(scale * (features(fresh) @ truth)))
    assert surrogate.r2 == pytest.approx(1, abs=1e-9)
    if scale != 3:  # steep: what an evaluation is predicted to be by hardly enough others is not told that exactly
        assert surrogate.r2_left_out == pytest.approx(1, abs=1e-9)


def test_losses_of_a_million_are_recovered():
    truth = 1e6 * np.array([5, 1, -1, 1, 0.5, -1])
    points, fresh = design("sobol", 7, 2, 0), design("sobol", 64, 2, 5)
    close(fit(points, features(points) @ truth, "softplus")(fresh), features(fresh) @ truth)


@pytest.mark.parametrize("dimensions", range(1, 7))
@pytest.mark.parametrize("link", LINK_NAMES)
def test_the_mixed_design_recovers_once_it_determines_the_coefficients(link, dimensions):
    points = design("mixed", 2 * terms_of(dimensions) + 4, dimensions, 1)
    assert np.linalg.matrix_rank(features(points)) == terms_of(dimensions)
    fresh, truth = design("latin-hypercube", 100, dimensions, 9), coefficients(dimensions)
    value = LINKS[link].value
    close(fit(points, value(features(points) @ truth), link)(fresh), value(features(fresh) @ truth))


@pytest.mark.parametrize("seed", range(8))
def test_steep_logits_are_recovered_where_enough_values_are_off_the_ends(seed):
    dimensions = 1 + seed % 3
    points = design("latin-hypercube", 4 * terms_of(dimensions), dimensions, seed)
    truth = coefficients(dimensions, seed)
    line = features(points) @ truth
    line *= 45 / np.abs(line).max()  # expit(45) is 1 in float64
    truth *= line[0] / (features(points[:1]) @ truth)
    tells = np.abs(line) < 16
    assert tells.sum() >= terms_of(dimensions)
    assert np.linalg.cond(features(points[tells])) < 1000
    fresh = design("latin-hypercube", 100, dimensions, 99)
    close(fit(points, expit(line), "logit")(fresh), expit(features(fresh) @ truth))


def test_values_at_the_very_ends_are_fitted():
    points = design("sobol", 32, 1, 0)
    line = 3000 * (points[:, 0] - 0.5) * (points[:, 0] - 1.5)
    values = expit(line)
    assert {0.0, 1.0} <= set(values.tolist())
    assert fit(points, values, "logit").r2 > 1 - 1e-6


def test_the_coefficients_are_those_of_the_centred_box():
    points = design("sobol", 16, 2, 0)
    x = 2 * points - 1
    values = 3 + 2 * x[:, 0] - x[:, 1] + 0.5 * x[:, 0] ** 2 + 4 * x[:, 0] * x[:, 1] - x[:, 1] ** 2
    surrogate = fit(points, values)
    assert surrogate.constant == pytest.approx(3)
    np.testing.assert_allclose(surrogate.linear, [2, -1])
    np.testing.assert_allclose(surrogate.curvature, [[0.5, 2], [2, -1]])
    np.testing.assert_allclose(surrogate.line(points), surrogate(points))


@pytest.mark.parametrize("link", LINK_NAMES)
@pytest.mark.parametrize("count", [1, 2, 5, 14])
def test_fewer_evaluations_than_coefficients_take_a_ridge(link, count):
    points, values = noisy(link, 4, count, 0.1)
    surrogate = fit(points, values, link)
    assert surrogate.ridge > 0
    fresh = np.random.default_rng(1).random((50, 4))
    assert np.isfinite(surrogate(fresh)).all()
    assert np.isfinite(surrogate.errors(fresh)).all()
    assert (surrogate.errors(fresh) > 0).all() or count == 1


def test_points_that_do_not_determine_a_quadratic_take_a_ridge_however_many_they_are():
    line = np.linspace(0, 1, 40)
    points = np.stack([line, line], axis=1)  # isotropic points alone
    surrogate = fit(points, np.sin(3 * line))
    assert surrogate.ridge > 0
    across, along = surrogate.line_errors(np.array([[0.0, 1.0], [0.5, 0.5]]))
    assert across > 10 * along
    with pytest.raises(ValueError, match="40 evaluations do not determine 6 coefficients without ridge"):
        fit(points, line, ridge=0.0)


@pytest.mark.parametrize("link", LINK_NAMES)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 10])
def test_equal_values_are_predicted_everywhere(link, value, count):
    points = design("sobol", 16, 2, 0)[:count]
    surrogate = fit(points, np.full(count, value), link)
    np.testing.assert_allclose(surrogate(design("sobol", 8, 2, 3)), value, atol=1e-6)
    assert (surrogate.r2_error, surrogate.misfit) == (0.0, pytest.approx(0, abs=1e-6))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    points = design("sobol", 4, 1, 0)
    for given in ((points, np.array([0, 1, 2, bad])), (points * [[1], [1], [1], [bad]], np.arange(4.0))):
        with pytest.raises(ValueError, match="all of them finite"):
            fit(*given)
    with pytest.raises(ValueError, match="all of them finite"):
        fit(points, np.arange(4.0), standard_errors=np.array([0, 0, 0, bad]))
    with pytest.raises(ValueError, match="needs evaluations"):
        fit(points[:0], np.arange(0.0))


# The optimum


@pytest.mark.parametrize("link", LINK_NAMES)
def test_the_optimum_is_that_of_curve_fit(link):
    points, values = noisy(link, 2, 30, 0.3)
    surrogate = fit(points, values, link, ridge=0.0)

    def model(at, *given):
        return LINKS[link].value(features(at) @ np.array(given))

    found, _ = curve_fit(model, points, values, p0=np.zeros(6), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    fresh = design("sobol", 32, 2, 0)
    np.testing.assert_allclose(surrogate(fresh), model(fresh, *found), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("link", LINK_NAMES)
@pytest.mark.parametrize(("count", "ridge"), [(30, 0.0), (30, 0.3), (9, 1e-3)])
def test_the_weighted_optimum_with_ridge_is_that_of_least_squares(link, count, ridge):
    points, values = noisy(link, 3, count, 0.2)
    errors = np.random.default_rng(2).uniform(0.01, 0.2, count)
    surrogate = fit(points, values, link, errors, ridge)
    trust = 1 / errors**2
    offset = LINKS[link].start(np.array([trust @ values / trust.sum()]))
    residuals = weighted_problem(
        points, values, link, errors, surrogate.misfit, ridge, offset[0], LINKS[link].slope(offset)[0] ** 2
    )
    start = np.concatenate([[surrogate.constant - offset[0]], surrogate.linear, np.zeros(6)])
    found = least_squares(residuals, start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    fresh = design("sobol", 32, 3, 0)
    expected = LINKS[link].value(offset + features(fresh) @ found.x)
    np.testing.assert_allclose(surrogate(fresh), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("link", LINK_NAMES)
@pytest.mark.parametrize("ridge", [None, 0.1])
def test_a_value_with_an_enormous_standard_error_changes_nothing(link, ridge):
    points, values = noisy(link, 2, 20, 0.1)
    errors = np.full(20, 0.02)
    wrong = {"identity": 1e6, "logit": 0.999, "softplus": 1e6}[link]
    alone = fit(points, values, link, errors, ridge)
    beside = fit(np.r_[points, [[0.5, 0.1]]], np.r_[values, wrong], link, np.r_[errors, 1e9], ridge)
    fresh = design("sobol", 32, 2, 0)
    assert beside.ridge == alone.ridge
    np.testing.assert_allclose(beside(fresh), alone(fresh), rtol=1e-4, atol=1e-5)
    assert beside.r2_left_out == pytest.approx(alone.r2_left_out, abs=1e-3)
    assert beside.error_left_out == pytest.approx(alone.error_left_out, rel=1e-2)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_the_misfit_solves_the_equation_of_paule_and_mandel(scale):
    draw = np.random.default_rng(3)
    points, values = noisy("identity", 2, 60, 0.2, seed=3)
    errors = draw.uniform(0.02, 0.3, 60)
    values, errors = scale * (values + errors * draw.normal(size=60)), scale * errors
    terms = features(points)

    def excess(variance):
        weights = 1 / (errors**2 + variance)
        solution = np.linalg.solve(terms.T @ (weights[:, None] * terms), terms.T @ (weights * values))
        return weights @ (values - terms @ solution) ** 2 - (60 - 6)

    expected = np.sqrt(brentq(excess, 0, scale**2, xtol=1e-12 * scale**2))
    assert fit(points, values, "identity", errors, 0.0).misfit == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(0.2 * scale, rel=0.3)


def test_noise_that_standard_errors_account_for_is_no_misfit():
    draw = np.random.default_rng(0)
    points, values = noisy("identity", 2, 40, 0.0)
    errors = np.full(40, 0.3)
    assert fit(points, values + 0.2 * draw.normal(size=40), "identity", errors).misfit == 0
    assert fit(points, values + 0.2 * draw.normal(size=40), "identity", ridge=0).misfit == pytest.approx(0.2, rel=0.4)


# Leave-one-out


@pytest.mark.parametrize("count", [8, 25])
def test_left_out_predictions_are_those_of_refits(count):
    points, values = noisy("identity", 3, count, 0.3)
    values -= values.mean()  # the offset of a refit is the mean of one value fewer

    def refitted(row):
        terms, free = features(np.delete(points, row, 0)), np.r_[100.0, np.ones(9)]
        design_, target = terms * free, np.delete(values, row)
        solution = np.linalg.solve(design_.T @ design_ + 0.05 * np.eye(10), design_.T @ target)
        return (features(points[[row]]) * free @ solution)[0]

    surrogate = fit(points, values, ridge=0.05)
    expected = np.array([refitted(row) for row in range(count)])
    np.testing.assert_allclose(surrogate.left_out, expected, rtol=1e-8, atol=1e-9)
    lost = (values - expected) ** 2
    total = np.square(values).mean()
    assert surrogate.error_left_out == pytest.approx(np.sqrt(lost.mean()))
    assert surrogate.r2_left_out == pytest.approx(1 - lost.mean() / total)
    assert surrogate.r2_error == pytest.approx(lost.std(ddof=1) / np.sqrt(count) / total)
    assert surrogate.r2 == pytest.approx(1 - np.square(values - surrogate(points)).mean() / total)


@pytest.mark.parametrize("link", ["logit", "softplus"])
def test_left_out_predictions_are_close_to_those_of_refits(link):
    points, values = noisy(link, 2, 30, 0.2)
    surrogate = fit(points, values, link, ridge=0.01)
    expected = [
        fit(np.delete(points, row, 0), np.delete(values, row), link, ridge=0.01)(points[[row]])[0] for row in range(30)
    ]
    missed = np.sqrt(np.square(values - expected).mean())
    assert np.sqrt(np.square(surrogate.left_out - expected).mean()) < 0.1 * missed
    assert surrogate.error_left_out == pytest.approx(missed, rel=0.05)


# The posterior


@pytest.mark.parametrize("count", [4, 30])
@pytest.mark.parametrize("ridge", [0.01, 3.0])
def test_variances_are_those_of_bayesian_linear_regression(count, ridge):
    points, values = noisy("identity", 3, count, 0.3)
    errors = np.random.default_rng(1).uniform(0.1, 0.4, count)
    surrogate = fit(points, values, "identity", errors, ridge)
    noise = errors**2 + max(surrogate.misfit, 1e-6 * values.std()) ** 2
    prior = noise.min() / ridge * np.r_[100.0, np.ones(9)] ** 2
    terms, fresh = features(points), design("sobol", 16, 3, 0)
    # in observations' space, which is stable for few of them: P − P Xᵀ (X P Xᵀ + N)⁻¹ X P
    gained = prior[:, None] * terms.T @ np.linalg.solve(terms * prior @ terms.T + np.diag(noise), terms * prior)
    expected = np.einsum("it,ts,is->i", features(fresh), np.diag(prior) - gained, features(fresh))
    np.testing.assert_allclose(surrogate.line_errors(fresh) ** 2, expected, rtol=1e-5)
    np.testing.assert_allclose(surrogate.errors(fresh), surrogate.line_errors(fresh))


def test_errors_of_values_are_those_of_the_line_times_the_slope_where_small_and_stay_in_the_range():
    points, values = noisy("logit", 2, 60, 0.05)
    surrogate, fresh = fit(points, values, "logit"), design("sobol", 16, 2, 0)
    slope = LINKS["logit"].slope(surrogate.line(fresh))
    np.testing.assert_allclose(surrogate.errors(fresh), slope * surrogate.line_errors(fresh), rtol=1e-2)
    unknown = fit(points[:2], values[:2] * [0.01, 1], "logit", ridge=1e-6)
    assert unknown.line_errors(fresh).max() > 100
    assert unknown.errors(fresh).max() <= 0.5


@pytest.mark.parametrize("link", LINK_NAMES)
def test_intervals_cover_the_truth(link):
    fresh = design("sobol", 32, 2, 0)
    inside = []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        points, truth = design("latin-hypercube", 20, 2, seed), coefficients(2, seed)
        value = LINKS[link].value
        values = value(features(points) @ truth) + 0.02 * draw.normal(size=20)
        surrogate = fit(points, values, link, np.full(20, 0.02), 0.0)
        apart = surrogate(fresh) - value(features(fresh) @ truth)
        inside.append((np.abs(apart) <= 1.96 * surrogate.errors(fresh)).mean())
    assert 0.91 < np.mean(inside) < 0.985


def test_uncertainties_of_many_points_are_those_of_few():
    points, values = noisy("identity", 6, 40, 0.1)
    surrogate = fit(points, values)
    many = np.random.default_rng(0).random((2**18, 6))
    found = surrogate.line_errors(many)
    np.testing.assert_allclose(found[-5:], surrogate.line_errors(many[-5:]), rtol=1e-10)


# The ridge


@pytest.mark.parametrize(("link", "count", "dimensions"), [("identity", 12, 4), ("logit", 20, 3), ("softplus", 40, 3)])
def test_the_ridge_is_the_one_that_predicts_best(link, count, dimensions):
    points, values = noisy(link, dimensions, count, 0.3, seed=4)
    found = fit(points, values, link)
    for ridge in (1e3, 10.0, 1.0, 0.1, 0.01, 1e-3, 1e-6):
        assert found.error_left_out <= fit(points, values, link, ridge=ridge).error_left_out * (1 + 1e-6)
    again = fit(points, values, link, ridge=found.ridge)
    np.testing.assert_allclose(found(points), again(points), rtol=1e-5, atol=1e-6)


def test_a_ridge_means_the_same_in_all_units():
    points, values = noisy("identity", 4, 10, 0.2)
    one, other = fit(points, values), fit(points, 1e9 * values + 3e9)
    assert one.ridge == other.ridge
    np.testing.assert_allclose(other(points), 1e9 * one(points) + 3e9, rtol=1e-6)


def test_rare_successes_are_no_more_shrunk_than_common_ones():
    points, truth = design("sobol", 16, 4, 0)[:12], coefficients(4)
    line = 0.3 * features(points) @ truth
    rare, common = fit(points, expit(line - 9), "logit"), fit(points, expit(line), "logit")
    spread = [np.ptp(surrogate.line(points)) / np.ptp(line) for surrogate in (rare, common)]
    assert spread[0] == pytest.approx(spread[1], rel=0.3)
