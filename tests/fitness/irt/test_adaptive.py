"""Which items are asked next: against brute force, and by how much sooner the score is known."""

import numpy as np
import pytest
from scipy.special import expit

from evomerge.fitness.irt.adaptive import next_items
from evomerge.fitness.irt.bank import ItemParameters
from evomerge.fitness.irt.estimate import expected_scores
from evomerge.fitness.irt.likelihood import abilities


def items(count, dimensions=1, seed=0):
    draw = np.random.default_rng(seed)
    return ItemParameters.logistic(0.3 + 1.5 * draw.random((count, dimensions)), draw.normal(size=count) * 1.5)


def test_they_are_new_and_as_many_as_there_are():
    parameters = items(12)
    asked = np.array([3, 7, 1])
    found = next_items(parameters, asked, np.array([1.0, 0.0, 1.0]), 5)
    assert len(set(found)) == 5
    assert not set(found) & set(asked)
    rest = next_items(parameters, asked, np.array([1.0, 0.0, 1.0]), 50)
    assert sorted([*rest, *asked]) == list(range(12))
    assert list(rest[:5]) == list(found)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_first_leaves_the_least_expected_variance_of_the_score(dimensions):
    """Brute force: the variance after each item, its response averaged over. Both linearise, so a near tie counts."""
    parameters = items(15, dimensions, seed=1)
    asked, values = np.array([0, 1, 2, 3]), np.array([1.0, 0.0, 1.0, 1.0])
    found = abilities(parameters.chosen(asked), values[None])
    left = {}
    for item in range(4, 15):
        chance = float(expit(found.means[0] @ parameters.slopes[item] + parameters.intercepts[item]))
        more = np.append(asked, item)
        variances = [expected_scores(parameters, more, np.append(values, y)[None])[1][0] for y in (0.0, 1.0)]
        left[item] = (1 - chance) * variances[0] + chance * variances[1]
    best = int(next_items(parameters, asked, values, 1)[0])
    assert left[best] <= min(left.values()) + 0.1 * (max(left.values()) - min(left.values()))


def test_the_score_is_known_sooner_than_by_random_items():
    parameters = items(150, seed=2)
    draw = np.random.default_rng(3)
    chosen, by_chance = [], []
    for ability in draw.normal(size=60):
        responses = (draw.random(150) < expit(ability * parameters.slopes[:, 0] + parameters.intercepts)).astype(float)
        rows = draw.choice(150, 5, replace=False)
        others = draw.choice(np.setdiff1d(np.arange(150), rows), 10, replace=False)
        for _ in range(2):
            rows = np.append(rows, next_items(parameters, rows, responses[rows], 5))
        for asked, errors in ((rows, chosen), (np.append(rows[:5], others), by_chance)):
            errors.append(expected_scores(parameters, asked, responses[asked][None])[0][0] - responses.mean())
    assert np.abs(chosen).mean() < 0.85 * np.abs(by_chance).mean()
