"""Batches of plain models: what a worker and the pool make of them, and that no model suffers for its company."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from evomerge.experiments.schema import read_experiment
from evomerge.fitness import Fitness, FitnessConfig, Responses
from evomerge.recipes import Recipe, pack_recipe
from evomerge.testing.plain_models import plain_experiment
from evomerge.workers import Outcome, Pool, WorkerSpec, connect
from evomerge.workers.actor import Worker

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
BAD = "{"  # no recipe


@pytest.fixture
def spec(tmp_path: Path) -> WorkerSpec:
    experiment = read_experiment(str(plain_experiment(tmp_path)))
    fitness = experiment.fitness.model_dump(mode="json")
    return WorkerSpec(experiment.references, fitness, "float32", str(experiment.base), "cpu", 1)


def items_of(spec: WorkerSpec) -> dict[str, tuple[str, ...]]:
    return Fitness(FitnessConfig.model_validate(spec.fitness)).items("search")


def sum_of(spec: WorkerSpec, weight: float) -> str:
    """Return the packed recipe of the weighted sum of two networks."""
    models = [{"model": spec.references[name], "parameters": {"weight": weight}} for name in "ab"]
    fields = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}, "dtype": "float32"}
    return pack_recipe(Recipe.model_validate(fields))


def recipes_of(spec: WorkerSpec, count: int) -> list[str]:
    """Return packed recipes with different numbers."""
    return [sum_of(spec, 0.1 + 0.05 * number) for number in range(count)]


def responses(outcome: Outcome) -> Responses:
    assert outcome.responses is not None, outcome.error
    return Responses.from_json(outcome.responses)


def batch(worker: Worker, recipes: list[str], items: dict[str, tuple[str, ...]]) -> list[Outcome]:
    return worker.evaluate_batch([(recipe, {}) for recipe in recipes], items, {})


def sizes(spec: WorkerSpec) -> list[int]:
    """Return the sizes of the batches that the function was called with."""
    file = Path(spec.references["a"]).parents[1] / "sizes"
    return [int(size) for size in file.read_text().split()]


def test_a_batch_answers_as_each_of_its_models_alone(spec: WorkerSpec) -> None:
    worker, items, recipes = Worker(spec), items_of(spec), recipes_of(spec, 5)
    expected = [responses(worker.evaluate(recipe, items, {}, {})) for recipe in recipes]
    assert len({str(each.tasks) for each in expected}) == 5
    outcomes = batch(worker, recipes, items)
    assert [responses(outcome) for outcome in outcomes] == expected
    assert [responses(each) for each in batch(worker, recipes[::-1], items)] == expected[::-1]
    assert 8 not in sizes(spec)
    assert sizes(spec).count(4) == 2
    for outcome in outcomes:
        assert 0 < outcome.merge_seconds < outcome.seconds
        assert 0 < outcome.forward_seconds <= outcome.seconds


def test_a_recipe_that_cannot_be_merged_spares_its_batch(spec: WorkerSpec) -> None:
    worker, items, recipes = Worker(spec), items_of(spec), recipes_of(spec, 3)
    first, bad, *others = batch(worker, [recipes[0], BAD, *recipes[1:]], items)
    assert bad.responses is None
    assert "Traceback" in str(bad.error)
    expected = [responses(worker.evaluate(recipe, items, {}, {})) for recipe in recipes]
    assert [responses(each) for each in (first, *others)] == expected
    assert [each.responses for each in batch(worker, [BAD, BAD], items)] == [None, None]


def test_batches_are_as_large_as_declared_or_asked(spec: WorkerSpec) -> None:
    assert Worker(spec)._batch == 64
    assert Worker(replace(spec, batch=3))._batch == 3
    one_by_one = {"objectives": [{"function": spec.fitness["objectives"][0]["function"].replace("near", "small")}]}
    assert Worker(replace(spec, fitness=one_by_one))._batch == 1


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    connect(None)
    yield
    ray.shutdown()


def answers(pool: Pool, count: int, seconds: float = 600) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    until = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < until:
        if (answer := pool.next(timeout=5)) is not None:
            found[answer[0]] = answer[1]
    return found


def test_what_waits_is_given_in_batches_and_answered_recipe_by_recipe(spec: WorkerSpec) -> None:
    items, recipes = items_of(spec), recipes_of(spec, 8)
    expected = [responses(Worker(spec).evaluate(recipe, items, {}, {})) for recipe in recipes]
    asked = [*recipes, BAD]
    with Pool(spec, 1, retries=1) as pool:
        for number, recipe in enumerate(asked):
            pool.submit(str(number), recipe, items)
        found = answers(pool, len(asked))
        assert [responses(found[str(n)]) for n in range(8)] == expected
        assert found["8"].responses is None
        assert pool.next() is None
        (state,) = pool.states()
        assert (state.done, state.failed) == (10, 2), "the bad one was tried twice"
    assert max(sizes(spec)) == 4, "all but the first, which found the worker idle, and the bad one"


def test_items_that_differ_are_not_asked_together(spec: WorkerSpec) -> None:
    items, recipes = items_of(spec), recipes_of(spec, 3)
    fewer = {task: names[:5] for task, names in items.items()}
    with Pool(spec, 1, retries=0) as pool:
        for number, (recipe, asked) in enumerate(zip(recipes, (items, items, fewer), strict=True)):
            pool.submit(str(number), recipe, asked)
        found = answers(pool, 3)
    counts = [len(next(iter(responses(found[str(n)]).tasks.values())).items) for n in range(3)]
    assert counts == [len(next(iter(items.values())))] * 2 + [5]


@pytest.mark.slow
def test_a_model_that_kills_its_worker_fails_alone(spec: WorkerSpec) -> None:
    items, recipes = items_of(spec), recipes_of(spec, 4)
    (Path(spec.references["a"]).parents[1] / "todo").touch()
    notes: list[str] = []
    with Pool(spec, 1, retries=1, report=notes.append) as pool:
        for number, recipe in enumerate([*recipes[:2], sum_of(spec, 1e6), *recipes[2:]]):
            pool.submit(str(number), recipe, items)
        found = answers(pool, 5)
    assert found["2"].worker_lost
    assert "died in each of 2 tries of this recipe" in str(found["2"].error)
    assert all(found[str(n)].responses is not None for n in (0, 1, 3, 4))
    assert len(notes) == 3, "once in company, twice alone"
