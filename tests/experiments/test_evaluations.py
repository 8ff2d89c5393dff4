"""Evaluations: once per recipe, kept on disk, and a score that cannot be computed fails its trial alone."""

from pathlib import Path
from typing import Any

import pytest

from evomerge.experiments.evaluations import Asked, Evaluations, FixedPlan, digest
from evomerge.experiments.journal import Trial
from evomerge.experiments.loop import Candidate
from evomerge.experiments.preflight import alone
from evomerge.fitness import Responses, TaskResponses
from evomerge.workers import Outcome

RECIPE = alone("model", None)
ANSWERS = Responses({"t": TaskResponses(("0-a", "1-b"), {"acc,none": [1.0, 0.0]}, [True, False], None)})


class OneTask:
    """A fitness of two items; ``scorer`` gives the objectives."""

    def __init__(self, scorer: Any = lambda responses: {"acc": 0.5}) -> None:
        self.score = scorer

    def items(self, split: str) -> dict[str, tuple[str, ...]]:
        return {"t": ("0-a", "1-b")}


class Counting:
    """A pool that answers at once, and counts."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome, self.keys, self.asked = outcome, [], 0

    def submit(self, key: str, recipe_yaml: str, items: Any, gold: Any, lineage: Any) -> None:
        self.keys.append(key)
        self.asked += 1

    def dispatch(self) -> None:
        pass

    def next(self, timeout: float) -> tuple[str, Outcome] | None:
        return (self.keys.pop(0), self.outcome) if self.keys else None


def evaluations(folder: Path, pool: Counting, fitness: OneTask | None = None, items: str = "d") -> Evaluations:
    plan = FixedPlan("search", fitness or OneTask(), Asked({"t": (items,)}, {}))  # type: ignore[arg-type]
    return Evaluations(lambda: pool, plan, folder)  # type: ignore[arg-type,return-value]


def test_a_recipe_is_evaluated_once_even_by_the_next_session(tmp_path: Path) -> None:
    pool = Counting(Outcome(ANSWERS.to_json(), seconds=2.0))
    first = evaluations(tmp_path, pool)
    for _ in range(3):
        first.start(RECIPE)
    trial = first.trial(0, {}, RECIPE)
    assert (trial.objectives, trial.cached, trial.truncated) == ({"acc": 0.5}, False, {"t": 0.5})
    assert first.trial(1, {}, RECIPE).cached
    second = evaluations(tmp_path, pool)
    second.start(RECIPE)
    assert second.trial(0, {}, RECIPE).objectives == {"acc": 0.5}
    assert pool.asked == 1


def test_responses_to_other_items_are_not_used(tmp_path: Path) -> None:
    pool = Counting(Outcome(ANSWERS.to_json()))
    for items in ("d", "e"):
        session = evaluations(tmp_path, pool, items=items)
        session.start(RECIPE)
        session.trial(0, {}, RECIPE)
    assert pool.asked == 2


def test_a_damaged_file_is_evaluated_again(tmp_path: Path) -> None:
    pool = Counting(Outcome(ANSWERS.to_json()))
    (tmp_path / "search").mkdir()
    for damage in ("", "{", "[]", '{"items": "d"}', '{"items": "d", "outcome": {"nonsense": 1}}'):
        (tmp_path / "search" / f"{RECIPE.hash}.json").write_text(damage)
        session = evaluations(tmp_path, pool)
        session.start(RECIPE)
        assert session.trial(0, {}, RECIPE).objectives == {"acc": 0.5}
    assert pool.asked == 5


def overflow(responses: Responses) -> dict[str, float]:
    raise OverflowError("math range error")


@pytest.mark.parametrize("scorer", [overflow, lambda responses: {"acc": float("nan")}])
def test_a_score_that_cannot_be_computed_fails_its_trial(tmp_path: Path, scorer: Any) -> None:
    session = evaluations(tmp_path, Counting(Outcome(ANSWERS.to_json())), OneTask(scorer))
    session.start(RECIPE)
    trial = session.trial(0, {}, RECIPE)
    assert trial.failed
    assert "math range error" in str(trial.error) or "not a finite number: acc" in str(trial.error)


def test_a_recipe_that_failed_before_the_run_was_resumed_has_failed(tmp_path: Path) -> None:
    pool = Counting(Outcome(None, "boom"))
    session = evaluations(tmp_path, pool)
    session.recall([Trial(0, {}, None, RECIPE.hash, "boom")])
    session.start(RECIPE)
    trial = session.trial(1, {}, RECIPE)
    assert (trial.failed, trial.error, trial.cached, pool.asked) == (True, "boom", True, 0)


def test_the_digest_depends_on_the_order_of_items_not_of_tasks() -> None:
    assert digest({"a": ["1"], "b": ["2"]}) == digest({"b": ["2"], "a": ["1"]})
    assert digest({"a": ["1", "2"]}) != digest({"a": ["2", "1"]})


def test_winding_up_finishes_what_is_begun_and_drops_the_rest(tmp_path: Path) -> None:
    class OneWorker(Counting):
        def withdraw(self) -> list[str]:
            waiting, self.keys = self.keys[1:], self.keys[:1]
            return waiting

    pool = OneWorker(Outcome(ANSWERS.to_json()))
    found = evaluations(tmp_path, pool)
    recipes = [alone(f"model {number}", None) for number in range(4)]
    for recipe in recipes:
        found.start(recipe, {"x": 0.0})
    found.wind_up()
    found.wind_up()
    finished = [found.finish(Candidate(number, {"x": 0.0}, recipe)) for number, recipe in enumerate(recipes)]
    assert [trial is not None for trial in finished] == [True, False, False, False]
    assert pool.keys == []
