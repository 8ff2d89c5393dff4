"""Estimates from a few items: against integrals and optimisers written here, and on models from known items."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import spearmanr

from evomerge.fitness.irt import estimate
from evomerge.fitness.irt.bank import ItemBank, ItemParameters
from evomerge.fitness.irt.calibrate import calibrate, refit
from evomerge.fitness.irt.estimate import (
    COEFFICIENT_SCALE,
    PRIOR_ERRORS,
    Estimator,
    completed,
    expected_scores,
    fit_estimator,
    fit_estimators,
    merged_abilities,
)
from evomerge.fitness.irt.extract import Subset, extract
from evomerge.fitness.irt.likelihood import abilities
from evomerge.fitness.irt.moments import ScoreMoments
from evomerge.fitness.irt.names import CHOICES, KINDS
from evomerge.fitness.irt.responses import ResponseMatrix

INTERVAL = 1.96


def items(count=100, dimensions=1, seed=0, lower=0.0):
    draw = np.random.default_rng(seed)
    slopes, intercepts = draw.uniform(0.7, 2.2, (count, dimensions)), draw.normal(0, 1.2, count)
    if dimensions > 1:
        slopes[::2, 1:] *= -0.2
    return ItemParameters.logistic(slopes, intercepts, np.full(count, lower))


def chances(parameters, ability):
    logistic = expit(ability @ parameters.slopes.T + parameters.intercepts)
    return parameters.lower + (parameters.upper - parameters.lower) * logistic


def respond(parameters, models, seed=1, ability=None):
    draw = np.random.default_rng(seed)
    if ability is None:
        ability = draw.normal(size=(models, parameters.dimensions))
    p = chances(parameters, ability)
    return (draw.random(p.shape) < p).astype(float)


def bank_of(parameters, responses, parents=(), model="2pl"):
    models, count = responses.shape
    names = tuple(f"m{n}" for n in range(models))
    asked = tuple(f"i{n}" for n in range(count))
    return ItemBank("task", "acc", asked, parameters, names, responses, parents, made={"model": model})


def calibrated(responses):
    """Return the bank of items that not all models respond the same to."""
    responses = responses[:, np.ptp(responses, axis=0) > 0]
    bank = bank_of(items(responses.shape[1]), responses)
    return replace(bank, parameters=calibrate(ResponseMatrix(responses, bank.models, bank.items)).parameters)


@pytest.fixture
def together(monkeypatch):
    """Judge all models in one group, so that one factor says how wrong variances are."""
    monkeypatch.setattr(estimate, "GROUPS", 1)


def factor(estimator):
    ((_, only),) = estimator.inflation
    return only


def errors(estimator, responses):
    found = estimator(responses[:, estimator.subset.rows])
    off = found.values - responses.mean(1)
    return np.sqrt(np.mean(off**2)), np.mean(np.abs(off) <= INTERVAL * found.standard_errors)


@pytest.mark.parametrize("choice", ["random", "score-optimal", "stratified", "anchors-irt"])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_all_items_give_the_score(choice, dimensions):
    parameters = items(20, dimensions)
    responses, new = respond(parameters, 210), respond(parameters, 30, seed=2)
    subset = extract(choice, 20, parameters, responses)
    for kind, estimator in fit_estimators(KINDS, bank_of(parameters, responses), subset, responses[:2]).items():
        found = estimator(new[:, subset.rows])
        # weights that are fitted are drawn towards 0 by the least variance of an item, a millionth
        exact = 1e-12 if kind in ("raw", "p-irt", "mp-irt") or not subset.fitted else 1e-4
        np.testing.assert_allclose(found.values, new.mean(1), atol=exact)
        np.testing.assert_array_equal(found.standard_errors, 0)
        assert np.isfinite(estimator.inflation).all()


def test_graded_responses_that_are_seen_leave_no_doubt():
    parameters, values = items(20), np.random.default_rng(0).random((5, 20))
    scores, variances = expected_scores(parameters, np.arange(20), values)
    np.testing.assert_allclose(scores, values.mean(1), atol=1e-12)
    np.testing.assert_array_equal(variances, 0)


def integrated(parameters, rows, values):
    """Return the expected score, and its standard error, by integration over a fine grid."""
    grid = np.linspace(-8, 8, 4001)
    p = chances(parameters, grid[:, None])
    posterior = np.exp(-(grid**2) / 2)
    for row, value in zip(rows, values, strict=True):
        posterior = posterior * p[:, row] ** value * (1 - p[:, row]) ** (1 - value)
    posterior /= posterior.sum()
    rest = np.setdiff1d(np.arange(len(parameters)), rows)
    of_rest = p[:, rest].sum(1)
    within = posterior @ (p[:, rest] * (1 - p[:, rest])).sum(1)
    variance = within + posterior @ of_rest**2 - (posterior @ of_rest) ** 2
    return (values.sum() + posterior @ of_rest) / len(parameters), np.sqrt(variance) / len(parameters)


@pytest.mark.parametrize(("lower", "graded"), [(0.0, False), (0.25, False), (0.0, True)])
def test_p_irt_is_the_expectation_over_the_ability(lower, graded):
    parameters = items(60, lower=lower)
    rows = np.arange(3, 60, 3)
    values = respond(parameters, 200)[:, rows]
    if graded:
        values = 0.8 * values + 0.1
    scores, variances = expected_scores(parameters, rows, values)
    expected, deviations = np.transpose([integrated(parameters, rows, row) for row in values])
    # The posterior is taken to be normal, with the mean and variance of the true one, whose skew is left out.
    np.testing.assert_allclose(scores, expected, atol=0.004)
    assert np.abs(scores - expected).mean() < 0.001
    # The score's variance is linear in the ability's, and that of a response not seen is around its expectation: more
    # than around what it would be at the true ability, by a share that is small where items are many.
    assert np.median(np.sqrt(variances) / deviations) == pytest.approx(1.1, abs=0.1)
    assert (variances > 0.9 * deviations**2).all()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_p_irt_with_several_abilities_is_the_expectation_over_them(dimensions):
    """Importance sampling from the prior: a posterior of several abilities by brute force."""
    parameters = items(40, dimensions)
    rows = np.arange(0, 40, 3)
    values = respond(parameters, 8)[:, rows]
    draw = np.random.default_rng(3).normal(size=(100_000, dimensions))
    p = chances(parameters, draw)
    scores, _ = expected_scores(parameters, rows, values)
    for row, score in zip(values, scores, strict=True):
        weights = np.prod(np.where(row == 1, p[:, rows], 1 - p[:, rows]), axis=1)
        expected = weights @ p / weights.sum()
        expected[rows] = row
        assert score == pytest.approx(expected.mean(), abs=0.006)


def most_likely(asked, row, parents):
    """Return the coefficients of the parents' abilities that are most likely, by a general optimiser."""
    centre = np.full(len(parents), 1 / len(parents))

    def cost(coefficients):
        p = chances(asked, (coefficients @ parents)[None])[0]
        likelihood = row @ np.log(p) + (1 - row) @ np.log1p(-p)
        return -likelihood + ((coefficients - centre) ** 2).sum() / (2 * COEFFICIENT_SCALE**2)

    found = minimize(cost, centre, method="BFGS", options={"gtol": 1e-7})
    return found.x, cost


@pytest.mark.parametrize("lower", [0.0, 0.2])
@pytest.mark.parametrize(("dimensions", "count"), [(1, 2), (2, 2), (2, 3)])
def test_merged_abilities_are_the_most_likely_combination(lower, dimensions, count):
    asked = items(25, dimensions, lower=lower)
    parents = np.random.default_rng(4).normal(size=(count, dimensions))
    values = respond(asked, 12, seed=5)
    means, covariances = merged_abilities(asked, values, parents)
    for row, mean, covariance in zip(values, means, covariances, strict=True):
        coefficients, cost = most_likely(asked, row, parents)
        np.testing.assert_allclose(mean, coefficients @ parents, atol=1e-4)
        if lower == 0:  # where the expected information is the observed one
            step, unit = 1e-3, np.eye(count)
            hessian = [
                [
                    sum(a * b * cost(coefficients + step * (a * x + b * y)) for a in (1, -1) for b in (1, -1))
                    for x in unit
                ]
                for y in unit
            ]
            expected = parents.T @ np.linalg.inv(np.array(hessian) / (4 * step**2)) @ parents
            np.testing.assert_allclose(covariance, expected, atol=1e-4)


def test_merged_abilities_are_found_where_items_are_steep():
    """Newton steps alone go to and fro between two points here."""
    draw = np.random.default_rng(1)
    asked = ItemParameters.logistic(8 * draw.uniform(0.5, 1.5, (30, 1)), 8 * draw.normal(size=30))
    parents = np.array([[2.0], [1.5]])
    values = respond(asked, 60, seed=6)
    means, _ = merged_abilities(asked, values, parents)
    for row, mean in zip(values, means, strict=True):
        grid = np.linspace(-8, 8, 16001)  # along the parents, the shortest coefficients that give each ability
        nearest = np.full(2, 0.5) + np.outer(grid - 1.75, parents[:, 0]) / (parents**2).sum()
        logits = grid[:, None] * asked.slopes[:, 0] + asked.intercepts
        likelihood = -np.logaddexp(0, -logits) @ row - np.logaddexp(0, logits) @ (1 - row)
        best = np.argmax(likelihood - ((nearest - 0.5) ** 2).sum(1) / (2 * COEFFICIENT_SCALE**2))
        assert mean[0] == pytest.approx(grid[best], abs=2e-3)


def test_merges_can_be_better_or_worse_than_both_parents():
    asked = items(80)
    parents = np.array([[0.5], [0.2]])
    for ability in (2.0, -2.0):
        means, _ = merged_abilities(asked, respond(asked, 200, ability=np.full((200, 1), ability)), parents)
        assert np.sign(ability) * np.median(means) > 0.5


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("steep", [1, 100])
def test_responses_that_are_all_alike_give_finite_estimates(value, steep):
    parameters = items(60)
    parameters = ItemParameters.logistic(steep * parameters.slopes, steep * parameters.intercepts)
    rows, values = np.arange(20), np.full((1, 20), value)
    for parents in (None, np.array([[1.0], [-0.5]]), np.array([[0.3], [0.3]]), np.zeros((2, 1))):
        scores, variances = expected_scores(parameters, rows, values, parents)
        assert 0 <= scores[0] <= 1
        assert np.isfinite(variances).all()
        assert variances[0] >= 0
    assert abs(scores[0] - (20 * value + chances(parameters, np.zeros((1, 1)))[0, 20:].sum()) / 60) < 1e-9


def test_the_response_model_helps_and_intervals_hold_the_truth():
    """With the true parameters: 1,000 models tell the inflation, 4,000 others are judged."""
    parameters = items()
    bank = bank_of(parameters, respond(parameters, 1000))
    new = respond(parameters, 4000, seed=2)
    for choice in CHOICES:
        subset = extract(choice, 15, parameters, bank.responses)
        found = {kind: errors(e, new) for kind, e in fit_estimators(KINDS, bank, subset).items()}
        assert found["p-irt"][0] < 0.95 * found["raw"][0]
        assert found["gp-irt"][0] < 1.02 * min(found["p-irt"][0], found["anchor"][0])
        for _, covered in found.values():
            assert 0.9 < covered < 0.98


@pytest.mark.parametrize("models", [30, 100, 300])
def test_items_are_not_judged_by_the_models_that_they_were_chosen_for(models):
    """Nothing shows how well items predict the models for which they were chosen among many, but other models."""
    found = []
    for seed in range(3):
        true = items(60, seed=seed)
        responses = respond(true, models, seed + 10)
        bank, new = calibrated(responses), respond(true, 1000, seed + 20)[:, np.ptp(responses, axis=0) > 0]
        subset = extract("score-optimal", 10, bank.parameters, bank.responses)
        kept = replace(subset, score_optimal=False)  # not chosen anew without those to be judged
        found.append([errors(fit_estimator("gp-irt", bank, each), new)[1] for each in (subset, kept)])
    covered, covered_if_kept = np.mean(found, axis=0)
    assert 0.87 < covered < 0.98
    assert covered > covered_if_kept + 0.03


def test_a_wrong_response_model_is_left_for_the_weights(together):
    parameters = items()
    responses = respond(parameters, 1000)
    subset = extract("score-optimal", 20, parameters, responses)
    shuffled = parameters.chosen(np.random.default_rng(0).permutation(100))
    wrong = fit_estimators(KINDS, bank_of(shuffled, responses), subset)
    new = respond(parameters, 2000, seed=2)
    assert wrong["gp-irt"].share > 0.9
    assert errors(wrong["gp-irt"], new)[0] < 0.8 * errors(wrong["p-irt"], new)[0]
    assert factor(wrong["p-irt"]) > factor(fit_estimator("p-irt", bank_of(parameters, responses), subset))
    assert errors(wrong["p-irt"], new)[1] > 0.9


def test_poor_weights_are_left_for_a_right_response_model():
    parameters = items()
    bank = bank_of(parameters, respond(parameters, 1000))
    estimator = fit_estimator("gp-irt", bank, extract("random", 8, parameters, bank.responses))
    assert 0 <= estimator.share < 0.1


def test_no_share_is_below_0():
    """A response model that hears too little, and weights that say the contrary."""
    parameters = items()
    deaf = replace(parameters, slopes=parameters.slopes / 4)
    opposite = Subset(np.arange(30), np.full(30, -1 / 30), 1.0)
    assert fit_estimator("gp-irt", bank_of(deaf, respond(parameters, 300)), opposite).share == 0


def test_the_share_and_the_inflation_are_those_that_fit(together):
    """With many models and shares for weights nothing is fitted anew: both follow from the estimators' parts."""
    parameters = items()
    shuffled = parameters.chosen(np.random.default_rng(0).permutation(100))
    bank = bank_of(shuffled, respond(parameters, 400))
    subset = extract("stratified", 20, shuffled, bank.responses)
    estimator = fit_estimator("gp-irt", bank, subset)
    scores, variances = expected_scores(shuffled, subset.rows, bank.responses[:, subset.rows])
    anchors, truth = bank.responses[:, subset.rows] @ subset.weights, bank.responses.mean(1)
    shares = np.linspace(0, 1, 1001)
    cost = [np.square(scores + share * (anchors - scores) - truth).sum() for share in shares]
    best = shares[np.argmin(cost)]
    assert 0.05 < best < 0.95
    assert estimator.share == pytest.approx(best, abs=PRIOR_ERRORS / 400 + 1e-3)
    mixed = scores + estimator.share * (anchors - scores)
    expected = (np.sum((mixed - truth) ** 2 / variances) + PRIOR_ERRORS) / (400 + PRIOR_ERRORS)
    assert factor(estimator) == pytest.approx(expected, rel=1e-9)
    found = estimator(bank.responses[:, subset.rows])
    np.testing.assert_allclose(found.values, np.clip(mixed, 0, 1), atol=1e-12)
    np.testing.assert_allclose(found.standard_errors, np.sqrt(expected * variances), rtol=1e-9)


def test_factors_follow_errors_that_depend_on_the_score(monkeypatch):
    """Responses of able models with half of the noise: intervals of both kinds of models hold the truth."""
    monkeypatch.setattr(estimate, "GROUP", 50)
    parameters = items()
    subset = extract("random", 20, parameters, respond(parameters, 100))
    dull, able = (respond(parameters, 400, ability=np.full((400, 1), at)) for at in (-1.0, 1.5))
    able = 0.5 * able + 0.5 * chances(parameters, np.full((400, 1), 1.5))
    found = fit_estimator("p-irt", bank_of(parameters, np.concatenate([dull, able])), subset)
    scores, factors = np.array(found.inflation).T
    assert len(factors) == 16
    assert (np.diff(scores) > 0).all()
    assert factors[:6].mean() > 1.5 * factors[-6:].mean()


def test_models_like_the_parents_say_how_far_off_estimates_may_be(together):
    """Half of the models find other items hard than the response model says."""
    parameters = items(80)
    parameters = replace(parameters, intercepts=2 * parameters.intercepts)
    other = parameters.chosen(np.random.default_rng(0).permutation(80))
    bank = bank_of(parameters, np.concatenate([respond(parameters, 1000), respond(other, 1000, 2)]))
    judged = estimate.judge(["p-irt"], bank, extract("stratified", 15, parameters, bank.responses))
    anyone = judged.estimator("p-irt")
    like = {kind: judged.estimator("p-irt", respond(each, 2, 3)) for kind, each in (("as", parameters), ("not", other))}
    assert factor(like["as"]) < 0.7 * factor(anyone)
    assert factor(like["not"]) > 1.1 * factor(anyone)
    assert errors(anyone, respond(parameters, 2000, 4))[1] > 0.98
    assert 0.92 < errors(like["as"], respond(parameters, 2000, 4))[1] < 0.97
    merges = replace(bank, parents=("m0", "m1"))
    assert factor(estimate.judge(["p-irt"], merges, judged.subset).estimator("p-irt", bank.responses[:2])) > 1


def test_few_models_are_judged_by_fits_without_them():
    """Inflation in sample is what the items' parameters and weights, fitted to these 12 models, say of the same."""
    for seed in range(3):
        bank = calibrated(respond(items(50, seed=seed), 12, seed))
        subset = extract("score-optimal", 10, bank.parameters, bank.responses)
        scores, variances = expected_scores(bank.parameters, subset.rows, bank.responses[:, subset.rows])
        squares = (scores - bank.responses.mean(1)) ** 2 / variances
        in_sample = (squares.sum() + PRIOR_ERRORS) / (12 + PRIOR_ERRORS)
        assert factor(fit_estimator("p-irt", bank, subset)) > 1.2 * in_sample


def test_a_fold_is_fitted_to_the_other_models():
    """Five models make five folds of one: their errors by hand."""
    bank = calibrated(respond(items(40), 5, seed=3))
    subset = extract("a-optimal", 8, bank.parameters, bank.responses)
    squares = []
    for model in range(5):
        rest = np.delete(bank.responses, model, axis=0)
        parameters = refit(bank, rest)
        weights, offset = ScoreMoments.of(parameters, rest).weights(subset.rows)
        row = bank.responses[model]
        _, variances = expected_scores(parameters, subset.rows, row[None, subset.rows])
        squares.append((row[subset.rows] @ weights + offset - row.mean()) ** 2 / variances[0])
    expected = (sum(squares) + PRIOR_ERRORS) / (5 + PRIOR_ERRORS)
    assert factor(fit_estimator("anchor", bank, subset)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("models", "dimensions", "model"), [(2, 1, "2pl"), (3, 2, "2pl"), (4, 1, "rasch"), (6, 1, "3pl")]
)
def test_very_few_models_give_finite_estimates(models, dimensions, model):
    parameters = items(12, dimensions)
    bank = bank_of(parameters, respond(parameters, models), model=model)
    for choice in ("score-optimal", "random"):
        subset = extract(choice, 4, parameters, bank.responses)
        for estimator in fit_estimators(KINDS, bank, subset, bank.responses[:2]).values():
            found = estimator(bank.responses[:, subset.rows])
            assert np.isfinite(found.values).all()
            assert (found.standard_errors > 0).all()
            assert np.isfinite(found.standard_errors).all()


@pytest.mark.parametrize("dimensions", [1, 2])
def test_missing_responses_are_filled_by_what_is_expected_of_them(dimensions):
    parameters = items(50, dimensions)
    responses = respond(parameters, 400)
    np.testing.assert_array_equal(completed(parameters, responses), responses)
    missing = np.random.default_rng(0).random(responses.shape) < 0.3
    gaps = np.where(missing, np.nan, responses)
    filled = completed(parameters, gaps)
    np.testing.assert_array_equal(filled[~missing], responses[~missing])
    for row in range(5):  # what p-IRT expects of a model of which only the others were asked
        rows = np.flatnonzero(~missing[row])
        scores, _ = expected_scores(parameters, rows, responses[row : row + 1, rows])
        assert filled[row].mean() == pytest.approx(scores[0], abs=1e-6)
    off = filled[missing] - responses[missing]
    assert abs(off.mean()) < 4 * np.sqrt((filled[missing] * (1 - filled[missing])).mean() / missing.sum())
    bank = bank_of(parameters, gaps)
    subset = extract("random", 15, parameters, filled)
    assert errors(fit_estimator("p-irt", bank, subset), responses)[1] > 0.9


def test_guessing_counts_where_responses_are_missing():
    parameters = items(40, lower=0.3)
    gaps = np.full((1, 40), np.nan)
    grid = np.linspace(-8, 8, 2001)
    density = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    expected = density @ chances(parameters, grid[:, None])
    np.testing.assert_allclose(completed(parameters, gaps)[0], expected, atol=1e-3)


def family(count=60, merges=300):
    """Return parameters of two abilities and responses of two parents, and of merges between and beyond them."""
    draw = np.random.default_rng(7)
    parameters = items(count, 2)
    parents = np.array([[1.5, 0.0], [-0.5, 1.0]])
    between = draw.uniform(-0.3, 1.3, (merges, 1))
    ability = np.concatenate([parents, between * parents[0] + (1 - between) * parents[1]])
    return parameters, respond(parameters, merges + 2, ability=ability)


def test_merges_alone_judge_estimators_of_merges(together):
    parameters, responses = family()
    subset = extract("stratified", 12, parameters, responses)
    named = fit_estimator("gmp-irt", bank_of(parameters, responses, ("m0", "m1")), subset, responses[:2])
    # by hand: the errors of merges, at combinations of the parents' abilities
    merges, asked = responses[2:], responses[2:, subset.rows]
    parents = abilities(parameters, responses[:2]).means
    np.testing.assert_array_equal(named.parents, parents)
    scores, variances = expected_scores(parameters, subset.rows, asked, parents)
    gaps, errors_of_scores = asked @ subset.weights - scores, merges.mean(1) - scores
    belief = PRIOR_ERRORS * gaps.var()
    share = np.clip((gaps @ errors_of_scores + belief / 2) / (gaps @ gaps + belief), 0, 1)
    assert named.share == pytest.approx(share, rel=1e-6)
    squares = (scores + share * gaps - merges.mean(1)) ** 2 / variances
    assert factor(named) == pytest.approx((squares.sum() + PRIOR_ERRORS) / (300 + PRIOR_ERRORS), rel=1e-6)
    # whatever the parents respond to other items than those asked
    rest = np.setdiff1d(np.arange(60), subset.rows)
    changed = responses.copy()
    changed[np.ix_([0, 1], rest)] = 1 - changed[np.ix_([0, 1], rest)]
    again = fit_estimator("gmp-irt", bank_of(parameters, changed, ("m0", "m1")), subset, responses[:2])
    assert (again.share, again.inflation) == (named.share, named.inflation)
    other = fit_estimator("gmp-irt", bank_of(parameters, changed), subset, responses[:2])
    assert other.inflation != named.inflation


def test_without_merges_p_irts_errors_stand_for_those_of_mp_irt():
    parameters, responses = family(merges=30)
    subset = extract("stratified", 12, parameters, responses)
    for bank in (bank_of(parameters, responses), bank_of(parameters, responses, tuple(f"m{n}" for n in range(32)))):
        found = fit_estimators(["p-irt", "mp-irt"], bank, subset, responses[:2])
        assert found["mp-irt"].inflation == found["p-irt"].inflation


def test_knowing_the_parents_helps():
    parameters, responses = family(merges=600)
    bank = bank_of(parameters, responses[:302], ("m0", "m1"))
    found = fit_estimators(KINDS, bank, extract("random", 8, parameters, responses), responses[:2])
    apart, covered = zip(*(errors(found[kind], responses[302:]) for kind in ("mp-irt", "p-irt")), strict=True)
    assert apart[0] < apart[1]
    assert all(0.9 < share < 0.99 for share in covered)


def test_several_kinds_at_once_are_as_each_alone():
    parameters, responses = family(merges=40)
    subset, bank = extract("score-optimal", 10, parameters, responses), bank_of(parameters, responses, ("m0", "m1"))
    for kind in ("mp-irt", "gmp-irt"):
        alone, together = (
            fit_estimator(kind, bank, subset, responses[:2]),
            fit_estimators(KINDS, bank, subset, responses[:2]),
        )
        assert (alone.share, alone.inflation) == (together[kind].share, together[kind].inflation)


def test_soft_responses_to_some_items_are_used_whichever_items_a_fold_chooses():
    parameters, draw = items(50), np.random.default_rng(8)
    ability = draw.normal(size=(2040, 1))
    responses = respond(parameters, 2040, ability=ability)
    soft = np.sort(draw.choice(50, 30, replace=False))
    gold = expit(2 * (ability @ parameters.slopes.T + parameters.intercepts) + 0.5)
    subset = extract("score-optimal", 6, parameters, responses[:40])
    soft = np.union1d(soft, subset.rows)
    known = np.full_like(gold, np.nan)
    known[:, soft] = gold[:, soft]
    for gold_of_bank in (gold, known):
        bank = replace(bank_of(parameters, responses[:40]), gold=gold_of_bank[:40])
        plain, helped = fit_estimator("p-irt", bank, subset), fit_estimator("p-irt", bank, subset, soft=soft)
        found = helped(responses[40:, subset.rows], known[40:])
        off = found.values - responses[40:].mean(1)
        assert np.sqrt(np.mean(off**2)) < 0.95 * errors(plain, responses[40:])[0]
        assert np.mean(np.abs(off) <= INTERVAL * found.standard_errors) > 0.9


def test_estimates_do_not_leave_the_unit_interval():
    subset = Subset(np.arange(5), np.full(5, 0.5), 0.1, fitted=True)
    found = Estimator("anchor", items(20), subset)(np.array([[1.0] * 5, [0.0] * 5]))
    assert found.values.tolist() == [1, 0.1]


def test_real_models_are_told_apart_by_20_items(metabench):
    """One draw of benchmarks/irt_estimates.py with one ability."""
    matrix = metabench("gsm8k").matrix
    draw = np.random.default_rng(0)
    held_out = draw.choice(len(matrix.models), 300, replace=False)
    rest = np.setdiff1d(np.arange(len(matrix.models)), held_out)
    known = ResponseMatrix(matrix.values[rest], tuple(matrix.models[row] for row in rest), matrix.items)
    bank = calibrate(known).bank(known, "", "")
    new, truth = matrix.values[held_out], matrix.values[held_out].mean(1)
    estimator = fit_estimator("gp-irt", bank, extract("score-optimal", 20, bank.parameters, bank.responses))
    found = estimator(new[:, estimator.subset.rows])
    off = np.abs(found.values - truth)
    assert spearmanr(found.values, truth)[0] >= 0.96
    assert 0.9 < np.mean(off <= INTERVAL * found.standard_errors) < 0.98
    picks = [draw.choice(len(matrix.items), 20, replace=False) for _ in range(50)]
    assert off.mean() < 0.62 * np.mean([np.abs(new[:, pick].mean(1) - truth).mean() for pick in picks])
