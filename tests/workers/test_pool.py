"""The Ray pool: placement, order, and what happens to a request that cannot be met."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from evomerge.errors import WorkerError
from evomerge.experiments.preflight import alone
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.fitness import Fitness, Responses
from evomerge.recipes import write_recipe
from evomerge.testing.tiny_experiment import tiny_experiment
from evomerge.workers import Outcome, Placement, Pool, WorkerSpec, connect, place
from evomerge.workers.actor import Worker

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


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


def test_workers_share_the_cores() -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    assert place("auto", None, None, trials=1000) == Placement("cpu", cpus, 1)
    assert place("cpu", 1, None, trials=1000) == Placement("cpu", 1, cpus)


def test_no_more_workers_than_trials() -> None:
    assert place("cpu", None, None, trials=1).workers == 1


def test_a_gpu_that_is_not_there_is_refused_instead_of_waited_for() -> None:
    if "GPU" in ray.cluster_resources():
        pytest.skip("this machine has a GPU")
    with pytest.raises(WorkerError, match=r"workers\.devices is cuda, but Ray sees no GPU; use devices: cpu"):
        place("cuda", None, None, trials=10)


def test_more_workers_than_devices_are_refused_instead_of_waited_for() -> None:
    with pytest.raises(WorkerError, match=r"workers\.count is 999, but there are only \d+ cpu devices"):
        place("cpu", 999, None, trials=1000)


def test_more_threads_than_cores_are_refused_instead_of_waited_for() -> None:
    with pytest.raises(WorkerError, match=r"1 workers of 999 threads need 999 cores, but there are \d+"):
        place("cpu", None, 999, trials=10)
    assert place("cpu", None, 2, trials=1000).workers == int(ray.cluster_resources()["CPU"]) // 2


def test_a_worker_evaluates_as_the_same_code_does_here(
    pool: Pool, spec: WorkerSpec, experiment: ExperimentConfig
) -> None:
    items = Fitness(experiment.fitness).items("search")
    text = write_recipe(alone(experiment.parents["b"], None))
    pool.submit("b", text, items)
    key, outcome = pool.next(timeout=60) or ("", None)
    assert key == "b"
    assert isinstance(outcome, Outcome)
    assert outcome.responses is not None
    here = Worker(spec).evaluate(text, items, {})
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
    _, outcome = pool.next(timeout=60) or ("", Outcome(None))
    assert outcome.responses is None
    assert not outcome.worker_lost
    assert "nonsense" in str(outcome.error)
    assert "Traceback" in str(outcome.error)
    pool.submit("good", write_recipe(alone(experiment.parents["a"], None)), items)
    _, outcome = pool.next(timeout=60) or ("", Outcome(None))
    assert outcome.error is None


def test_nothing_submitted_is_nothing_to_wait_for(pool: Pool) -> None:
    assert pool.next(timeout=5) is None


def test_workers_that_cannot_be_built_say_why(spec: WorkerSpec, tmp_path: Path) -> None:
    broken = WorkerSpec({"a": str(tmp_path / "gone")}, spec.fitness, "float32", "a", "cpu", 1)
    with pytest.raises(WorkerError, match=r"a worker could not be built:(.|\n)*gone"):
        Pool(broken, 1, retries=0)


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
