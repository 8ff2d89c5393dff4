"""Evaluations: once per recipe, kept on disk, and a score that cannot be computed fails its trial alone."""

from pathlib import Path
from typing import Any

import pytest

from evomerge.experiments.evaluations import Asked, Evaluations, FixedPlan, digest
from evomerge.experiments.journal import Trial
from evomerge.experiments.loop import Candidate
from evomerge.experiments.preflight import alone
from evomerge.fitness import Responses, TaskResponses
from evomerge.recipes import unpack_recipe
from evomerge.search_spaces import ParentsInfo
from evomerge.search_spaces.lineage import LineageSpace, LineageSpaceConfig
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
    begin = f'{{"recipe":"{RECIPE.hash}","items":"{evaluations(tmp_path, pool)._plan.digest}",'
    damages = ("", "{", "[]", "\0" * 40, f"{begin}\n", f'{begin}"nonsense":1}}\n', f'{begin}"responses":{{"tasks":{{\n')
    for damage in damages:
        (tmp_path / "search.jsonl").write_text(damage)
        session = evaluations(tmp_path, pool)
        session.start(RECIPE)
        assert session.trial(0, {}, RECIPE).objectives == {"acc": 0.5}
        assert evaluations(tmp_path, pool).trial(0, {}, RECIPE).objectives == {"acc": 0.5}
    assert pool.asked == len(damages)


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


class Forgetful(Counting):
    """A pool whose worker lacks a source of each recipe until it is sent all that this is made of."""

    def __init__(self, outcome: Outcome, missing: str) -> None:
        super().__init__(outcome)
        self.missing, self.sent = missing, list[tuple[str, ...]]()

    def submit(self, key: str, recipe_yaml: str, items: Any, gold: Any, *, lineage: Any, ahead: bool = False) -> None:
        super().submit(key, recipe_yaml, items, gold, lineage)
        self.sent.append(tuple(lineage))
        assert all(unpack_recipe(text).hash == trial for trial, text in lineage.items())

    def next(self, timeout: float) -> tuple[str, Outcome] | None:
        if self.keys and len(self.sent) == 1:
            return self.keys.pop(0), Outcome(None, "not known here", missing=(self.missing,))
        return super().next(timeout)


def test_a_worker_is_sent_the_sources_and_their_ancestors_only_if_it_asks(tmp_path: Path) -> None:
    config = LineageSpaceConfig(kind="lineage", crossover="slerp")
    space = LineageSpace(config, ParentsInfo(None, {"a": "a", "b": "b"}, (), 1))
    hashes = []
    genome: dict[str, Any] = {"first": -1, "second": -2, "weight": 0.5}
    for number in range(5):
        hashes.append(space.express(genome).hash)
        space.told(genome, hashes[-1])
        genome = {"first": number, "second": -1, "weight": 0.5}
    pool = Forgetful(Outcome(ANSWERS.to_json()), hashes[4])
    plan = FixedPlan("search", OneTask(), Asked({"t": ("0-a",)}, {}))  # type: ignore[arg-type]
    asked = Evaluations(lambda: pool, plan, tmp_path, lineage=space)  # type: ignore[arg-type,return-value]
    child = space.express(genome)
    asked.start(child, genome)
    assert asked.outcome(child).responses is not None
    assert pool.sent == [(hashes[4],), tuple(hashes)]
    assert "missing" not in (tmp_path / "search.jsonl").read_text()
