"""Preferences: the chosen one is never dominated, scale does not matter, and every part of a front can be reached."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.experiments import fronts
from evomerge.experiments.picks import pick
from evomerge.experiments.preferences import best, read_preference
from evomerge.searchers import ObjectiveSpec

OBJECTIVES = (ObjectiveSpec("math", "maximize"), ObjectiveSpec("loss", "minimize"), ObjectiveSpec("ja", "maximize"))
NAMES = [objective.name for objective in OBJECTIVES]

Rows = list[dict[str, float]]
scores = st.integers(-20, 20).map(lambda value: value / 8)  # few values: ties are common, and sums exact
rows = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, scores)), min_size=1, max_size=12)
positive = st.fixed_dictionaries({name: st.sampled_from([0.25, 0.5, 1.0, 2.0, 5.0]) for name in NAMES})


def shortfalls(candidates: Rows, chosen: int) -> dict[str, float]:
    """What the chosen one lacks of the best, as a share of the range, by its definition."""
    found = {}
    for objective in OBJECTIVES:
        values = [row[objective.name] for row in candidates]
        top, bottom = max(values), min(values)
        lacking = top - values[chosen] if objective.direction == "maximize" else values[chosen] - bottom
        found[objective.name] = lacking / ((top - bottom) or 1)
    return found


@given(rows, positive)
def test_what_is_chosen_is_dominated_by_none(candidates: Rows, weights: dict[str, float]) -> None:
    assert best(candidates, weights, OBJECTIVES) in fronts.front(candidates, OBJECTIVES)


@given(rows, positive)
def test_the_largest_weighted_shortfall_is_the_smallest(candidates: Rows, weights: dict[str, float]) -> None:
    def worst(index: int) -> float:
        return max(weights[name] * value for name, value in shortfalls(candidates, index).items())

    chosen = best(candidates, weights, OBJECTIVES)
    margin = 1e-3 * sum(weights.values())  # what the sum of shortfalls may tip
    assert worst(chosen) <= min(map(worst, range(len(candidates)))) + margin


@given(rows, positive, st.sampled_from([0.25, 2.0, 64.0]), st.integers(-5, 5))
def test_neither_units_nor_offsets_nor_the_sum_of_the_weights_matter(
    candidates: Rows, weights: dict[str, float], factor: float, offset: int
) -> None:
    chosen = best(candidates, weights, OBJECTIVES)
    rescaled = [row | {"loss": factor * row["loss"] + offset} for row in candidates]
    assert best(rescaled, weights, OBJECTIVES) == chosen
    heavier = {name: factor * weight for name, weight in weights.items()}
    assert best(candidates, heavier, OBJECTIVES) == chosen


@given(rows, positive, st.sampled_from(NAMES), st.sampled_from([2.0, 8.0]))
def test_more_weight_never_makes_an_objective_worse(
    candidates: Rows, weights: dict[str, float], name: str, factor: float
) -> None:
    """Beyond what the sum of shortfalls tips: here scores differ by more than that, as they have steps of an eighth."""
    before = best(candidates, weights, OBJECTIVES)
    after = best(candidates, weights | {name: factor * weights[name]}, OBJECTIVES)
    assert shortfalls(candidates, after)[name] <= shortfalls(candidates, before)[name] + 1e-9


@given(rows, positive, st.sampled_from(NAMES))
def test_an_objective_of_weight_0_does_not_count(candidates: Rows, weights: dict[str, float], name: str) -> None:
    weights[name] = 0.0
    chosen = best(candidates, weights, OBJECTIVES)
    turned = [row | {name: -row[name]} for row in candidates]
    assert best(turned, weights, OBJECTIVES) == chosen


@given(rows, positive, st.lists(st.booleans(), min_size=12, max_size=12))
def test_only_those_that_may_be_chosen_are(candidates: Rows, weights: dict[str, float], may: list[bool]) -> None:
    among = may[: len(candidates)]
    assume(any(among))
    assert among[best(candidates, weights, OBJECTIVES, among)]


def test_every_point_of_a_hollow_front_can_be_reached() -> None:
    """On x² + y² of a hollow quarter circle a weighted sum only ever finds the two ends."""
    objectives = (ObjectiveSpec("x", "maximize"), ObjectiveSpec("y", "maximize"))
    angles = [math.pi / 2 * step / 20 for step in range(21)]
    hollow = [{"x": 1 - math.cos(angle), "y": 1 - math.sin(angle)} for angle in angles]
    assert {max(range(21), key=lambda i: w * hollow[i]["x"] + (1 - w) * hollow[i]["y"]) for w in (0.1, 0.4, 0.9)} == {
        0,
        20,
    }
    for wanted, row in enumerate(hollow[1:-1], start=1):
        weights = {"x": 1 / (1 - row["x"]), "y": 1 / (1 - row["y"])}
        assert best(hollow, weights, objectives) == wanted


def test_twice_the_weight_halves_the_shortfall() -> None:
    objectives = (ObjectiveSpec("x", "maximize"), ObjectiveSpec("y", "maximize"))
    line = [{"x": step / 300, "y": 1 - step / 300} for step in range(301)]
    assert line[best(line, {"x": 1.0, "y": 1.0}, objectives)] == pytest.approx({"x": 1 / 2, "y": 1 / 2})
    assert line[best(line, {"x": 2.0, "y": 1.0}, objectives)] == pytest.approx({"x": 2 / 3, "y": 1 / 3})


def test_a_preference_is_read_with_weight_1_for_what_it_leaves_out() -> None:
    assert read_preference("", OBJECTIVES) == {"math": 1.0, "loss": 1.0, "ja": 1.0}
    assert read_preference(" ja = 2.5 , loss=0,", OBJECTIVES) == {"math": 1.0, "loss": 0.0, "ja": 2.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("maths=2", r"--prefer: no objective is called 'maths'(.|\n)*did you mean 'math'"),
        ("math", "'math' gives no weight"),
        ("math=", "'math=' gives no weight"),
        ("math=-1", "write it as math=2, with a number that is not negative"),
        ("math=inf", "gives no weight"),
        ("math=nan", "gives no weight"),
        ("math=0,loss=0,ja=0", "all weights are 0"),
    ],
)
def test_what_is_no_preference_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_preference(text, OBJECTIVES)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_preference("maths=1,loss=x", OBJECTIVES)
    assert len(caught.value.problems) == 2


def test_a_pick_by_preference_is_the_trial_that_suits_it() -> None:
    confirmed = {
        4: {"math": 0.9, "loss": 3.0, "ja": 0.1},
        7: {"math": 0.6, "loss": 2.0, "ja": 0.6},
        9: {"math": 0.1, "loss": 1.0, "ja": 0.9},
    }
    assert pick("prefer:", confirmed, OBJECTIVES) == 7
    assert pick("prefer:math=5", confirmed, OBJECTIVES) == 4
    assert pick("prefer:loss=9,math=0,ja=0", confirmed, OBJECTIVES) == 9
    with pytest.raises(ConfigError, match="--pick: no objective is called 'jp'"):
        pick("prefer:jp=1", confirmed, OBJECTIVES)
