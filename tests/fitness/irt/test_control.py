"""Soft responses as control variates: against scikit-learn's logistic regression, and by what they take off errors."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from evomerge.fitness.irt.bank import ItemBank, ItemParameters
from evomerge.fitness.irt.control import SoftScale, differences, fit_scale
from evomerge.fitness.irt.estimate import fit_estimator
from evomerge.fitness.irt.extract import Subset, extract

ITEMS, ASKED = 120, 15


def simulated(models, seed=0):
    """Return parameters, responses and soft responses that err less than these, but are biased."""
    draw = np.random.default_rng(seed)
    items = np.random.default_rng(99)
    parameters = ItemParameters.logistic(0.5 + items.random((ITEMS, 1)), items.normal(size=ITEMS))
    own = 0.7 * draw.normal(size=(models, ITEMS))  # what of a response is the model's own, and its soft response shows
    logits = draw.normal(size=(models, 1)) @ parameters.slopes.T + parameters.intercepts + own
    responses = (draw.random(logits.shape) < expit(2 * logits)).astype(float)
    return parameters, responses, expit(logits - 1)


def test_the_scale_is_logistic_regression():
    _, responses, gold = simulated(40)
    gold[3, 5:50] = np.nan
    responses[7, :20] = np.nan
    both = ~(np.isnan(gold) | np.isnan(responses))
    expected = LogisticRegression(C=1e6).fit(logit(gold[both])[:, None], responses[both])
    found = fit_scale(gold, responses)
    assert found.slope == pytest.approx(expected.coef_[0, 0], rel=1e-3)
    assert found.intercept == pytest.approx(expected.intercept_[0], rel=1e-3)
    assert found(np.array([0.0, 1.0])) == pytest.approx([0, 1], abs=1e-3)


def test_differences_are_of_the_subset_to_all_and_to_its_responses():
    chances = np.array([[0.1, 0.5, 0.9, np.nan], [0.2, 0.2, 0.2, 0.6]])
    subset = Subset(np.array([2, 0]), np.array([0.5, 0.25]), 0.1)
    found = differences(chances, np.array([[1.0, 0.0], [1.0, 1.0]]), subset)
    assert found == pytest.approx(
        np.array([[0.5 - (0.45 + 0.025 + 0.1), 0.475 - 0.5], [0.3 - (0.1 + 0.05 + 0.1), 0.15 - 0.75]])
    )


@pytest.mark.parametrize(("everywhere", "most"), [(True, 0.55), (False, 0.95)])
def test_soft_responses_take_off_errors(everywhere, most):
    """On all items they leave half of the error, the noise of responses; on those asked alone, they help a little."""
    parameters, responses, gold = simulated(60)
    bank = ItemBank("t", "m", tuple(map(str, range(ITEMS))), parameters, tuple(map(str, range(60))), responses)
    with_gold = ItemBank(bank.task, bank.metric, bank.items, parameters, bank.models, responses, (), gold, bank.made)
    with_gold.made["model"] = bank.made["model"] = "2pl"
    subset = extract("stratified", ASKED, parameters, responses)
    soft = np.arange(ITEMS) if everywhere else subset.rows
    plain = fit_estimator("gp-irt", bank, subset)
    helped = fit_estimator("gp-irt", with_gold, subset, soft=soft)
    _, new, new_gold = simulated(500, seed=1)
    seen = np.where(np.isin(np.arange(ITEMS), soft), new_gold, np.nan)
    truth, asked = new.mean(1), new[:, subset.rows]
    without, given = plain(asked), helped(asked, seen)
    assert np.abs(given.values - truth).mean() < most * np.abs(without.values - truth).mean()
    assert 0.9 <= (np.abs(given.values - truth) < 1.96 * given.standard_errors).mean() <= 0.995
    assert given.standard_errors.mean() < without.standard_errors.mean()


def test_a_scale_of_responses_that_soft_ones_say_nothing_of_is_flat():
    draw = np.random.default_rng(0)
    found = fit_scale(draw.random((50, 50)), (draw.random((50, 50)) < 0.3).astype(float))
    assert found.slope == pytest.approx(0, abs=0.1)
    assert SoftScale(found.intercept, 0.0)(np.array([0.5]))[0] == pytest.approx(0.3, abs=0.03)
