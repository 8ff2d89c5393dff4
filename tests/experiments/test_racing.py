"""Races: what candidates are asked, and when they are asked no more."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from evomerge.experiments.journal import Trial
from evomerge.experiments.racing import EstimatedPlan, dominated
from evomerge.fitness.estimate_config import EstimateConfig
from evomerge.fitness.estimation import Estimated, Items
from evomerge.fitness.responses import Responses, TaskResponses
from evomerge.recipes import Recipe
from evomerge.search_spaces.genes import FloatGene
from evomerge.searchers import ObjectiveSpec

RECIPE = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": "m"}]})
GENES = (FloatGene("x", 0.0, 1.0, 0.5), FloatGene("y", -2.0, 2.0, 0.0))
MAX, MIN = ObjectiveSpec("acc", "maximize"), ObjectiveSpec("loss", "minimize")


def trial(number: int, error: float = 0.05, **objectives: float) -> Trial:
    return Trial(number, {}, objectives, f"r{number}", standard_errors=dict.fromkeys(objectives, error))


def scored(error: float = 0.05, **objectives: float) -> dict[str, tuple[float, float]]:
    return {name: (value, error) for name, value in objectives.items()}


def test_the_probability_is_that_of_normal_errors() -> None:
    draw = np.random.default_rng(0)
    rival, candidate = trial(0, 0.03, acc=0.7, loss=0.2), scored(0.06, acc=0.65, loss=0.25)
    better = (draw.normal(0.7, 0.03, 200_000) > draw.normal(0.65, 0.06, 200_000)) & (
        draw.normal(0.2, 0.03, 200_000) < draw.normal(0.25, 0.06, 200_000)
    )
    assert dominated(candidate, [rival], [MAX, MIN]) == pytest.approx(better.mean(), abs=0.005)
    one = norm.cdf(0.05 / math.hypot(0.03, 0.06))
    assert dominated(candidate, [rival], [MAX, MIN]) == pytest.approx(one**2, rel=1e-9)


def test_the_likeliest_rival_counts_and_none_is_no_danger() -> None:
    far, near = trial(0, acc=0.1, loss=0.9), trial(1, acc=0.9, loss=0.1)
    assert dominated(scored(acc=0.5, loss=0.5), [], [MAX, MIN]) == 0
    assert dominated(scored(acc=0.5, loss=0.5), [far], [MAX, MIN]) < 0.001
    assert dominated(scored(acc=0.5, loss=0.5), [far, near], [MAX, MIN]) > 0.999


def test_exact_scores_are_compared_exactly() -> None:
    rival = replace(trial(0, acc=0.5), standard_errors={})
    assert dominated(scored(0.0, acc=0.49), [rival], [MAX]) == 1
    assert dominated(scored(0.0, acc=0.51), [rival], [MAX]) == 0


@dataclass
class Estimating:
    """An estimation whose estimate is the mean response, known to 1 / items asked."""

    config: EstimateConfig
    items: Items
    soft: Items = field(default_factory=dict)

    def items_of(self, recipe_hash: str) -> Items:
        return self.items

    def gold(self, items: Items, *, first: bool) -> Items:
        return {}

    def score(self, fitness: Any, responses: Responses) -> dict[str, Estimated]:
        found = responses.tasks["t"].values["acc"]
        return {"acc": Estimated(float(np.mean(found)), 1 / len(found))}

    def more(self, fitness: Any, responses: Responses, items: Items, count: int) -> Items:
        left = [item for item in items["t"] if item not in responses.tasks["t"].items]
        return {"t": tuple(left[:count])} if left else {}


def plan(**config: Any) -> EstimatedPlan:
    estimation = Estimating(EstimateConfig(items=12, smooth=False, **config), {"t": tuple(map(str, range(12)))})
    return EstimatedPlan(None, estimation, [MAX])  # type: ignore[arg-type]


def asked(race: EstimatedPlan, right: float) -> list[int]:
    """Return how many items a candidate is asked in each batch, if so large a part of its responses is right."""
    asking, sizes, responses = race.begin(RECIPE, {}), [], None
    while (more := asking(responses)) is not None:
        names = more.items["t"]
        sizes.append(len(names))
        new = Responses({"t": TaskResponses(names, {"acc": [right] * len(names)})})
        responses = new if responses is None else responses.with_more(new)
    return sizes


def test_without_a_race_all_chosen_items_are_asked_once() -> None:
    race = plan()
    race.told(trial(0, 0.001, acc=0.99))
    assert asked(race, 0.0) == [12]


def test_only_candidates_that_are_clearly_dominated_stop_early() -> None:
    race = plan(adaptive={"batch": 5})
    assert asked(race, 0.0) == [5, 5, 2]  # the first has no rivals
    race.told(trial(0, 0.001, acc=0.9))
    assert asked(race, 0.0) == [5]
    assert asked(race, 0.88) == [5, 5, 2]
    race.told(trial(1, 0.001, acc=0.1))  # dominated itself
    race.told(replace(trial(2, acc=0.5), objectives=None))
    assert asked(race, 0.95) == [5, 5, 2]


def test_rivals_are_those_told_before_the_candidate_began() -> None:
    race = plan(adaptive={"batch": 5})
    asking = race.begin(RECIPE, {})
    race.told(trial(0, 0.001, acc=0.99))
    first = Responses({"t": TaskResponses(("0", "1", "2", "3", "4"), {"acc": [0.0] * 5})})
    assert asking(first) is not None
    assert race.begin(RECIPE, {})(first) is None


def test_other_items_or_rules_make_other_digests() -> None:
    plans = [plan(), plan(adaptive={}), plan(adaptive={"batch": 6})]
    assert len({race.digest for race in plans}) == 3
    assert plan().digest == plans[0].digest


def smooth_plan(**config: Any) -> EstimatedPlan:
    estimation = Estimating(EstimateConfig(items=12, smooth=True, **config), {"t": tuple(map(str, range(12)))})
    return EstimatedPlan(None, estimation, [MAX], GENES)  # type: ignore[arg-type]


def own(number: int, x: float, value: float, error: float = 0.1) -> Trial:
    genome = {"x": x, "y": 0.3}
    return Trial(
        number, genome, {"acc": value}, f"r{number}", standard_errors={"acc": error}, own={"acc": [value, error]}
    )


def test_a_trial_s_estimate_is_weighed_against_those_of_its_neighbours() -> None:
    race = smooth_plan()
    for number in range(40):
        race.told(own(number, number / 40, 0.5))
    lucky = Responses({"t": TaskResponses(tuple(map(str, range(10))), {"acc": [0.9] * 10})})
    found = race.score(lucky, {"x": 0.5, "y": 0.3}, "new")
    assert found.own["acc"] == (pytest.approx(0.9), pytest.approx(0.1))
    assert 0.45 < found.objectives["acc"] < 0.6
    assert found.standard_errors["acc"] < 0.05


def test_a_trial_that_was_lucky_leaves_the_front_in_the_end() -> None:
    race = smooth_plan()
    trials = [own(number, number / 40, 0.4 + 0.4 * number / 40) for number in range(40)]
    trials[5] = own(5, 5 / 40, 0.95)
    for each in trials:
        race.told(each)
    final = [t.number for t in race.final_front(trials)]
    assert 39 in final
    assert 5 not in final
    assert 5 in [t.number for t in plan().final_front(trials)]


def test_a_candidate_is_raced_with_what_its_neighbours_let_expect() -> None:
    """Ten bad neighbours: three bad responses are enough; ten good ones: they are not."""
    sizes = []
    for value in (0.2, 0.9):
        race = smooth_plan(adaptive={"batch": 3})
        for number in range(30):
            race.told(own(number, number / 30, value, 0.05))
        race.told(Trial(30, {"x": 1.0, "y": -2.0}, {"acc": 0.9}, "best", standard_errors={"acc": 0.01}))
        asking = race.begin(RECIPE, {"x": 0.5, "y": 0.3})
        assert asking(None) is not None
        some = Responses({"t": TaskResponses(("0", "1", "2"), {"acc": [0.6] * 3})})
        sizes.append(asking(some) is None)
    assert sizes == [True, False]


def test_of_trials_with_equal_estimates_the_latest_are_kept() -> None:
    trials = [trial(number, 0.01, acc=0.9 if number % 2 else 0.8) for number in range(20)]
    assert [t.number for t in plan().final_front(trials)] == [15, 17, 19]


def test_trials_that_may_be_on_the_front_are_confirmed_too() -> None:
    """The least surely dominated first, and none that surely is."""
    trials = [trial(number, 0.05, acc=0.9 - 0.01 * number) for number in range(40)]
    assert [t.number for t in plan().final_front(trials)] == list(range(12))
    sure = [trial(0, 0.01, acc=0.9), *(trial(number, 0.01, acc=0.8) for number in range(1, 9))]
    assert [t.number for t in plan().final_front(sure)] == [0]


def test_the_same_responses_again_say_nothing_new() -> None:
    race = smooth_plan()
    for number in range(12):
        race.told(own(number, number / 12, 0.5))
    lucky = Responses({"t": TaskResponses(tuple(map(str, range(10))), {"acc": [0.9] * 10})})
    race.told(own(12, 0.5, 0.9))
    first = race.score(lucky, {"x": 0.5, "y": 0.3}, "r12")
    race.told(replace(own(13, 0.5, 0.9), recipe_hash="r12", cached=True))
    assert race.score(lucky, {"x": 0.5, "y": 0.3}, "r12") == first
    assert race.score(lucky, {"x": 0.5, "y": 0.3}, "other").objectives["acc"] > first.objectives["acc"]


def test_a_recipe_that_was_tried_twice_is_confirmed_once() -> None:
    trials = [trial(0, acc=0.9), replace(trial(1, acc=0.9), recipe_hash="r0")]
    assert [t.number for t in plan().final_front(trials)] == [1]
