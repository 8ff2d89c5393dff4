"""Choosing items: what every choice promises, and each against its definition, computed the long way round."""

import numpy as np
import pytest
from scipy.special import expit

from evomerge.errors import ConfigError
from evomerge.fitness.irt.bank import ItemParameters
from evomerge.fitness.irt.extract import extract
from evomerge.fitness.irt.moments import ScoreMoments
from evomerge.fitness.irt.names import CHOICES

SHARES = ("random", "stratified", "anchors-irt", "anchors-correctness")
FITTED = tuple(choice for choice in CHOICES if choice not in SHARES)


def items(count=30, dimensions=1, seed=0, guessing=False):
    draw = np.random.default_rng(seed)
    slopes, intercepts = draw.uniform(0.4, 2.5, (count, dimensions)), draw.normal(0, 1.5, count)
    if dimensions > 1:
        slopes[::2, 0] *= -0.2
    return ItemParameters.logistic(slopes, intercepts, draw.uniform(0.05, 0.4, count) if guessing else None)


def respond(parameters, models=60, seed=1):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(models, parameters.dimensions)) @ parameters.slopes.T + parameters.intercepts
    return (draw.random(logits.shape) < parameters.lower + (1 - parameters.lower) * expit(logits)).astype(float)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("count", [1, 7, 29])
def test_every_choice_takes_as_many_items_as_asked(choice, count):
    parameters = items(dimensions=2)
    responses = respond(parameters)
    subset = extract(choice, count, parameters, responses)
    assert len(set(subset.rows.tolist())) == count == len(subset.weights)
    assert set(subset.rows) <= set(range(30))
    assert subset.fitted == (choice in FITTED)
    if choice in SHARES:
        assert subset.weights.sum() == pytest.approx(1, abs=1e-12)
        assert (subset.weights > 0).all()
        assert subset.offset == 0
    else:
        weights, offset = ScoreMoments.of(parameters, responses).weights(subset.rows)
        np.testing.assert_array_equal(subset.weights, weights)
        assert subset.offset == offset


@pytest.mark.parametrize("choice", CHOICES)
def test_all_items_give_the_score(choice):
    parameters = items(20)
    subset = extract(choice, 20, parameters, respond(parameters))
    assert sorted(subset.rows) == list(range(20))
    new = respond(parameters, seed=2)
    # fitted weights are drawn towards 0 by the least variance of an item, a millionth
    exact = 1e-12 if choice in SHARES else 1e-4
    np.testing.assert_allclose(new[:, subset.rows] @ subset.weights + subset.offset, new.mean(1), atol=exact)


@pytest.mark.parametrize("choice", CHOICES)
def test_the_choice_follows_from_the_seed(choice):
    parameters = items(dimensions=2)
    responses = respond(parameters)
    first, second = (extract(choice, 8, parameters, responses, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.weights, second.weights)
    others = [extract(choice, 8, parameters, responses, seed=seed).rows.tolist() for seed in range(4, 8)]
    if choice in ("random", "stratified", "anchors-irt"):
        assert first.rows.tolist() not in others
    if choice == "score-optimal":
        assert others == [first.rows.tolist()] * 4


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("count", [0, 31])
def test_more_items_than_there_are_are_refused(choice, count):
    with pytest.raises(ConfigError, match=rf"{count} items cannot be chosen from 30\n.*ask for fewer items"):
        extract(choice, count, items(), respond(items()))


def test_random_choices_are_fair():
    parameters = items(10)
    responses = respond(parameters)
    times = np.zeros(10)
    for seed in range(2000):
        times[extract("random", 3, parameters, responses, seed=seed).rows] += 1
    assert np.abs(times / 2000 - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 2000)


def test_strata_are_of_like_difficulty_and_each_gives_one_item_that_weighs_what_it_holds():
    parameters = items(10)
    responses = np.tril(np.ones((11, 10)), -1)[:, np.random.default_rng(0).permutation(10)]  # as hard as its column
    order = np.argsort(responses.mean(0))
    layers = [order[:3], order[3:6], order[6:8], order[8:]]
    seen = [set() for _ in layers]
    for seed in range(50):
        subset = extract("stratified", 4, parameters, responses, seed=seed)
        np.testing.assert_allclose(subset.weights, [0.3, 0.3, 0.2, 0.2])
        for row, layer, found in zip(subset.rows, layers, seen, strict=True):
            assert row in layer
            found.add(row)
    assert seen == [set(layer) for layer in layers]


def blobs():
    """Return features of items in clusters far apart of 3, 5, 2 and 10 items, shuffled, and the clusters."""
    draw = np.random.default_rng(4)
    sizes, centres = [3, 5, 2, 10], np.array([[0, 0], [30, 0], [0, 30], [30, 30]])
    labels = draw.permutation(np.repeat(np.arange(4), sizes))
    return centres[labels] + draw.normal(size=(20, 2)), labels


def assert_anchors(subset, features, labels):
    """Each cluster has one anchor, the item nearest to its mean, which weighs as much as the cluster."""
    assert sorted(labels[subset.rows]) == sorted(set(labels))
    for row, weight in zip(subset.rows, subset.weights, strict=True):
        members = np.flatnonzero(labels == labels[row])
        apart = np.linalg.norm(features[members] - features[members].mean(0), axis=1)
        assert row == members[apart.argmin()] or np.isclose(apart[members.tolist().index(row)], apart.min())
        assert weight == pytest.approx(len(members) / len(labels))


def test_anchors_by_parameters_stand_for_their_clusters():
    features, labels = blobs()
    parameters = ItemParameters.logistic(features[:, :1], features[:, 1])
    assert_anchors(extract("anchors-irt", 4, parameters, respond(parameters)), features, labels)


def test_anchors_by_correctness_stand_for_their_clusters():
    draw = np.random.default_rng(5)
    labels = draw.permutation(np.repeat(np.arange(4), [3, 5, 2, 10]))
    responses = draw.integers(0, 2, (60, 4)).astype(float)[:, labels]
    responses = np.where(draw.random(responses.shape) < 0.05, 1 - responses, responses)
    assert_anchors(extract("anchors-correctness", 4, items(20), responses), responses.T, labels)


@pytest.mark.parametrize("choice", ["anchors-irt", "anchors-correctness"])
def test_items_that_are_the_same_have_one_anchor_with_weight(choice):
    """Ten items of two kinds and six anchors: two stand for all, the other four are there to make up the number."""
    kinds = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1, 1])
    parameters = ItemParameters.logistic(np.ones((10, 1)), np.where(kinds, 2.0, -2.0))
    responses = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])[:, kinds]
    subset = extract(choice, 6, parameters, responses)
    assert len(set(subset.rows.tolist())) == 6
    assert sorted(subset.weights) == pytest.approx([0, 0, 0, 0, 0.3, 0.7])
    np.testing.assert_allclose(responses[:, subset.rows] @ subset.weights, responses.mean(1))


def information(parameters, item, ability):
    """Return the Fisher information (dimensions, dimensions) by its definition: (dP)(dP)' / (P (1 - P))."""

    def p(ability):
        low, high = parameters.lower[item], parameters.upper[item]
        return low + (high - low) * expit(parameters.slopes[item] @ ability + parameters.intercepts[item])

    step = 1e-5 * np.eye(len(ability))
    gradient = np.array([(p(ability + one) - p(ability - one)) / 2e-5 for one in step])
    return np.outer(gradient, gradient) / (p(ability) * (1 - p(ability)))


def by_brute_force(criterion, count, parameters, at):
    rows = []
    for _ in range(count):

        def cost(item):
            precisions = [np.eye(len(a)) + sum(information(parameters, row, a) for row in [*rows, item]) for a in at]
            return np.mean([criterion(np.linalg.inv(precision)) for precision in precisions])

        rows.append(min((item for item in range(len(parameters)) if item not in rows), key=cost))
    return rows


CRITERIA = {"d-optimal": lambda covariance: np.linalg.slogdet(covariance)[1], "a-optimal": np.trace}


@pytest.mark.parametrize("choice", CRITERIA)
@pytest.mark.parametrize(
    ("dimensions", "guessing", "abilities"), [(1, False, 1), (1, True, 3), (2, False, 1), (3, False, 4)]
)
def test_optimal_designs_are_the_brute_force_ones(choice, dimensions, guessing, abilities):
    parameters = items(15, dimensions, seed=dimensions, guessing=guessing)
    at = np.random.default_rng(6).normal(size=(abilities, dimensions))
    found = extract(choice, 8, parameters, respond(parameters), at=at)
    assert found.rows.tolist() == by_brute_force(CRITERIA[choice], 8, parameters, at)


def test_the_two_designs_differ_and_depend_on_the_abilities():
    parameters = items(40, 2)
    found = {
        (choice, place): tuple(extract(choice, 5, parameters, respond(parameters), at=np.full((1, 2), place)).rows)
        for choice in CRITERIA
        for place in (-2.0, 2.0)
    }
    assert len(set(found.values())) == 4


@pytest.mark.parametrize("choice", CRITERIA)
def test_a_design_for_the_population_is_one_for_abilities_drawn_from_it(choice):
    parameters = items(12)
    grid = np.linspace(-5, 5, 401)
    density = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    inform = np.array([[information(parameters, item, np.array([a]))[0, 0] for a in grid] for item in range(12)])
    reduced = np.log1p(inform) if choice == "d-optimal" else inform / (1 + inform)
    best = reduced @ density
    (first,) = extract(choice, 1, parameters, respond(parameters)).rows
    assert best[first] > 0.9 * best.max()  # abilities are drawn: the best, or one nearly as good


@pytest.mark.parametrize("choice", CHOICES)
def test_degenerate_items_can_be_chosen_from(choice):
    """Items of no use, very steep ones, the same ones; ones that all get right or wrong; a single model."""
    parameters = items(12)
    parameters.slopes[:2], parameters.slopes[2:4], parameters.intercepts[2:4] = 0, 1e4, 0
    parameters.slopes[5], parameters.intercepts[5] = parameters.slopes[4], parameters.intercepts[4]
    for responses in (respond(parameters), respond(parameters, 1), respond(parameters, 2) * 0.3):
        responses[:, 6], responses[:, 7], responses[:, 5] = 1, 0, responses[:, 4]
        subset = extract(choice, 12, parameters, responses)
        assert sorted(subset.rows) == list(range(12))
        np.testing.assert_allclose(
            responses[:, subset.rows] @ subset.weights + subset.offset, responses.mean(1), atol=1e-4
        )
