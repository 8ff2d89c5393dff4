"""Fronts, hypervolume and the pick."""

from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.experiments import fronts, picks
from evomerge.searchers import ObjectiveSpec

MAX2 = (ObjectiveSpec("a", "maximize"), ObjectiveSpec("b", "maximize"))
MIXED = (ObjectiveSpec("accuracy", "maximize"), ObjectiveSpec("loss", "minimize"))


def rows(*pairs: tuple[float, float], names: tuple[str, str] = ("a", "b")) -> list[dict[str, float]]:
    return [dict(zip(names, pair, strict=True)) for pair in pairs]


def test_front_keeps_the_non_dominated_and_equal_rows() -> None:
    scores = rows((0.5, 0.5), (0.2, 0.9), (0.4, 0.4), (0.5, 0.5), (0.9, 0.1))
    assert fronts.front(scores, MAX2) == [0, 1, 3, 4]


def test_front_respects_direction() -> None:
    scores = rows((0.9, 2.0), (0.9, 1.0), (0.8, 3.0), names=("accuracy", "loss"))
    assert fronts.front(scores, MIXED) == [1]


def test_front_of_nothing_is_empty() -> None:
    assert fronts.front([], MAX2) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_front_equals_the_definition(points: list[tuple[int, int, int]]) -> None:
    objectives = [ObjectiveSpec(n, "maximize") for n in "abc"]
    scores = [dict(zip("abc", map(float, p), strict=True)) for p in points]

    def dominates(q: tuple[int, ...], p: tuple[int, ...]) -> bool:
        return all(x >= y for x, y in zip(q, p, strict=True)) and q != p

    expected = [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]
    assert fronts.front(scores, objectives) == expected


def test_hypervolume_of_two_steps_is_their_area() -> None:
    volume = fronts.hypervolume(rows((0.5, 1.0), (1.0, 0.25)), MAX2, {"a": 0.0, "b": 0.0})
    assert volume == pytest.approx(0.5 * 1.0 + 0.5 * 0.25)


def test_hypervolume_ignores_points_behind_the_reference() -> None:
    assert fronts.hypervolume(rows((0.1, 0.1)), MAX2, {"a": 0.2, "b": 0.0}) == 0.0


def test_hypervolume_with_a_minimised_objective() -> None:
    scores = rows((0.5, 2.0), names=("accuracy", "loss"))
    assert fronts.hypervolume(scores, MIXED, {"accuracy": 0.0, "loss": 4.0}) == pytest.approx(1.0)


def test_reference_point_is_the_worst_of_each_objective() -> None:
    scores = rows((0.9, 2.0), (0.1, 1.0), names=("accuracy", "loss"))
    assert fronts.reference_point(scores, MIXED) == {"accuracy": 0.1, "loss": 2.0}


class TestPick:
    candidates: ClassVar = {3: {"a": 1.0, "b": 0.0}, 5: {"a": 0.8, "b": 0.8}, 9: {"a": 0.0, "b": 1.0}}

    def test_best_mean(self) -> None:
        assert picks.pick("best-mean", self.candidates, MAX2) == 5

    def test_best_mean_uses_the_weights(self) -> None:
        heavy = (ObjectiveSpec("a", "maximize", 10.0), ObjectiveSpec("b", "maximize", 1.0))
        assert picks.pick("best-mean", self.candidates, heavy) == 3

    def test_knee_lies_beyond_the_line_through_the_extremes(self) -> None:
        assert picks.pick("knee", self.candidates, MAX2) == 5

    def test_one_objective(self) -> None:
        assert picks.pick("objective:b", self.candidates, MAX2) == 9

    def test_one_trial(self) -> None:
        assert picks.pick("trial:3", self.candidates, MAX2) == 3

    def test_an_unknown_objective_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"no objective is called 'accuracyy'(.|\n)*did you mean 'accuracy'"):
            picks.pick("objective:accuracyy", {0: {"accuracy": 1.0, "loss": 0.0}}, MIXED)

    def test_an_unconfirmed_trial_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"trial 4 is not among(.|\n)*3, 5, 9"):
            picks.pick("trial:4", self.candidates, MAX2)

    def test_a_minimised_objective_counts_negatively(self) -> None:
        candidates = {0: {"accuracy": 0.5, "loss": 1.0}, 1: {"accuracy": 0.6, "loss": 5.0}}
        assert picks.pick("best-mean", candidates, MIXED) == 0


def test_gains_turn_minimised_objectives_round() -> None:
    np.testing.assert_array_equal(fronts.as_gains([{"accuracy": 0.5, "loss": 2.0}], MIXED), [[0.5, -2.0]])
