"""The Ray pool: what workers answer, and what becomes of evaluations whose worker fails."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from evomerge.errors import WorkerError
from evomerge.experiments.preflight import alone
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.fitness import Fitness, Responses
from evomerge.recipes import write_recipe
from evomerge.testing.tiny_experiment import tiny_experiment
from evomerge.workers import Outcome, Pool, WorkerSpec, connect
from evomerge.workers.actor import Worker

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

# Does what the first line of the file beside it says, once, and then answers.
FAULTY = """
import os, signal, time
from pathlib import Path

import torch

TODO = Path(__file__).with_name("todo")


def score_items():
    return ["0", "1", "2"]


def score(model, tokenizer, items):
    todo = TODO.read_text().splitlines() if TODO.exists() else []
    TODO.write_text("\\n".join(todo[1:]))
    match todo[:1]:
        case ["hang"]:
            time.sleep(600)
        case ["die"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["cuda"]:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        case [error]:
            raise ValueError(error)
    return [float(os.getpid())] * len(items)
"""


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    connect(None)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    return read_experiment(str(tiny_experiment(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture(scope="module")
def spec(experiment: ExperimentConfig) -> WorkerSpec:
    fitness = experiment.fitness.model_dump(mode="json")
    return WorkerSpec(experiment.references, fitness, "float32", str(experiment.base), "cpu", 1)


@pytest.fixture(scope="module")
def pool(spec: WorkerSpec) -> Iterator[Pool]:
    with Pool(spec, 1, retries=1) as pool:
        yield pool


class Faulty:
    """A pool of one worker whose fitness does as it is told, and what the pool reported."""

    def __init__(self, folder: Path, spec: WorkerSpec, **options: object) -> None:
        (folder / "faulty.py").write_text(FAULTY, encoding="utf-8")
        self._todo, self.notes = folder / "todo", list[str]()
        fitness = {"objectives": [{"function": f"{folder / 'faulty.py'}:score"}]}
        given = {"retries": 2, "report": self.notes.append} | options
        self.pool = Pool(replace(spec, fitness=fitness), 1, **given)  # type: ignore[arg-type]
        self._items = {f"{folder / 'faulty.py'}:score": ("0", "1", "2")}
        self._text = write_recipe(alone(next(iter(spec.references.values())), None))

    def does(self, *todo: str, key: str = "x") -> Outcome:
        self._todo.write_text("\n".join(todo), encoding="utf-8")
        items = Fitness(self.config).items("search")
        self.pool.submit(key, self._text, items)
        return answer(self.pool)[1]

    @property
    def config(self):  # type: ignore[no-untyped-def]
        from evomerge.fitness import FitnessConfig

        return FitnessConfig.model_validate(self.pool.spec.fitness)


@pytest.fixture
def faulty(tmp_path: Path, spec: WorkerSpec) -> Iterator[Faulty]:
    found = Faulty(tmp_path, spec, time_limit=20)
    with found.pool:
        yield found


def answer(pool: Pool, seconds: float = 120) -> tuple[str, Outcome]:
    """Return the next outcome, whatever happens to workers meanwhile."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = pool.next(timeout=5)
        if found is not None:
            return found
    raise AssertionError("no answer")


@pytest.mark.slow
def test_workers_join_when_there_is_room(
    spec: WorkerSpec, experiment: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.workers.pool.LOOK_SECONDS", 0.0)
    room, notes = [1], list[str]()
    items = Fitness(experiment.fitness).items("search")
    text = write_recipe(alone(experiment.parents["a"], None))
    with Pool(spec, 1, retries=0, report=notes.append, room=lambda: room[0]) as pool:
        assert len(pool.states()) == 1
        room[0] = 2
        pool.submit("first", text, items)
        answer(pool)
        assert notes == ["room for 2 workers now: starting 1 more"]
        until = time.monotonic() + 120
        while pool.size < 2 and time.monotonic() < until:
            pool.submit("again", text, items)
            answer(pool)
        assert pool.size == 2


def test_a_cluster_that_does_not_answer_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**options: object) -> None:
        raise ConnectionError("nobody at 127.0.0.1:1")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(WorkerError, match=r"cannot connect to the Ray cluster at 127\.0\.0\.1:1: nobody"):
        connect("127.0.0.1:1")


def test_the_driver_never_touches_cuda() -> None:
    """A driver that initialised CUDA would pin its workers to the wrong device."""
    import torch

    assert not torch.cuda.is_initialized()
    assert os.environ.get("CUDA_VISIBLE_DEVICES", "") == ""


def test_a_worker_evaluates_as_the_same_code_does_here(
    pool: Pool, spec: WorkerSpec, experiment: ExperimentConfig
) -> None:
    items = Fitness(experiment.fitness).items("search")
    text = write_recipe(alone(experiment.parents["b"], None))
    pool.submit("b", text, items)
    key, outcome = answer(pool)
    assert key == "b"
    assert isinstance(outcome, Outcome)
    assert outcome.responses is not None
    here = Worker(spec).evaluate(text, items, {}, {})
    assert here.responses is not None
    assert Responses.from_json(outcome.responses) == Responses.from_json(here.responses)
    assert outcome.worker != here.worker
    assert 0 < outcome.forward_seconds < outcome.seconds
    assert outcome.device == "cpu (1 threads)"


def test_a_recipe_that_fails_comes_back_with_its_traceback_and_the_worker_lives(
    pool: Pool, experiment: ExperimentConfig
) -> None:
    items = Fitness(experiment.fitness).items("search")
    pool.submit("bad", f"merge_method: nonsense\nmodels: [{{model: {experiment.parents['a']}}}]\n", items)
    _, outcome = answer(pool)
    assert outcome.responses is None
    assert not outcome.worker_lost
    assert "nonsense" in str(outcome.error)
    assert "Traceback" in str(outcome.error)
    pool.submit("good", write_recipe(alone(experiment.parents["a"], None)), items)
    _, outcome = answer(pool)
    assert outcome.error is None


def test_nothing_submitted_is_nothing_to_wait_for(pool: Pool) -> None:
    assert pool.next(timeout=5) is None


def test_workers_that_do_not_get_ready_say_what_may_be_the_reason(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.workers.pool.BUILD_SECONDS", 0)
    with pytest.raises(WorkerError, match=r"after 0 s: .*not taken: \S+ CPUs, 0 GPUs\), or .* busy .* fewer"):
        Pool(spec, 1, retries=0)


def test_workers_that_cannot_be_built_say_why(spec: WorkerSpec, tmp_path: Path) -> None:
    broken = WorkerSpec({"a": str(tmp_path / "gone")}, spec.fitness, "float32", "a", "cpu", 1)
    with pytest.raises(WorkerError, match=r"a worker could not be built:(.|\n)*gone"):
        Pool(broken, 1, retries=0)


def test_an_error_that_passes_is_none(faulty: Faulty) -> None:
    assert faulty.does("no luck", "none again").error is None
    assert faulty.pool.states()[0].failed == 2


def test_an_error_that_comes_again_is_the_recipes_own(faulty: Faulty) -> None:
    outcome = faulty.does("no luck", "no luck", "never reached")
    assert outcome.responses is None
    assert "ValueError: no luck" in str(outcome.error)
    assert not outcome.worker_lost


def test_ever_new_errors_are_too_many_at_some_point(faulty: Faulty) -> None:
    assert "third" in str(faulty.does("first", "second", "third", "fourth").error)


def test_a_worker_that_dies_hangs_or_breaks_its_gpu_is_replaced(faulty: Faulty) -> None:
    """Each time another process answers."""
    numbers = []
    for fault in ("die", "hang", "cuda"):
        outcome = faulty.does(fault, key=fault)
        assert outcome.responses is not None, outcome.error
        numbers.append(outcome.worker)
    assert len(set(numbers)) == 3
    died, hung, broke = faulty.notes
    assert died.startswith("a worker died (")
    assert "an evaluation took longer than 20 s" in hung
    assert "a worker's GPU failed (" in broke


def test_a_recipe_that_kills_every_worker_fails_after_so_many_tries(faulty: Faulty) -> None:
    outcome = faulty.does("die", "die", "die", "never reached")
    assert outcome.worker_lost
    assert "the worker's process died in each of 3 tries of this recipe" in str(outcome.error)
    assert faulty.does(key="another").error is None


def test_states_tell_what_each_worker_does(pool: Pool, experiment: ExperimentConfig) -> None:
    (idle,) = pool.states()
    assert (idle.phase, idle.key) == ("idle", "")
    pool.submit("a", write_recipe(alone(experiment.parents["a"], None)), Fitness(experiment.fitness).items("search"))
    (busy,) = pool.states()
    assert (busy.phase, busy.key) == ("busy", "a")
    assert (busy.name, busy.node, busy.device) == (idle.name, os.uname().nodename, "cpu (1 threads)")
    answer(pool)
    (after,) = pool.states()
    assert (after.phase, after.done, after.failed) == ("idle", idle.done + 1, idle.failed)


def test_merging_ahead_changes_no_answer(spec: WorkerSpec, experiment: ExperimentConfig) -> None:
    """Two recipes at once in one worker, in two models that neither see each other's weights nor random state."""
    items = Fitness(experiment.fitness).items("search")
    recipes = {name: write_recipe(alone(parent, None)) for name, parent in experiment.parents.items()}
    here = Worker(spec)
    answers = {name: here.evaluate(recipe, items, {}, {}).responses for name, recipe in recipes.items()}
    with Pool(replace(spec, overlap=True), 1, retries=0) as pool:
        for turn in range(4):
            for name, text in recipes.items():
                pool.submit(f"{name} {turn}", text, items)
        assert sum(state.phase == "busy" for state in pool.states()) == 1
        for _ in range(4 * len(recipes)):
            key, outcome = answer(pool)
            assert Responses.from_json(str(outcome.responses)) == Responses.from_json(str(answers[key.split()[0]]))
