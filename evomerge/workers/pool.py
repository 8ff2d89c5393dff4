"""The pool: Ray actors, one a device, that evaluate recipes; a dead one is replaced and its recipe runs again."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import ray

from evomerge.errors import WorkerError
from evomerge.workers.actor import Items, Outcome, Worker, WorkerSpec

BUILD_SECONDS = 600


@dataclass(frozen=True)
class Placement:
    """Where the workers run."""

    device: Literal["cpu", "cuda"]
    workers: int
    threads: int


def place(devices: Literal["auto", "cpu", "cuda"], count: int | None, threads: int | None, trials: int) -> Placement:
    """Choose device, number of workers and threads a worker from what Ray offers.

    Raises:
        WorkerError: more was asked for than there is.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
    if devices == "cuda" and not gpus:
        raise WorkerError("workers.devices is cuda, but Ray sees no GPU; use devices: cpu, or check nvidia-smi")
    device: Literal["cpu", "cuda"] = "cuda" if gpus and devices != "cpu" else "cpu"
    available = gpus if device == "cuda" else cpus
    if count is not None and count > available:
        raise WorkerError(f"workers.count is {count}, but there are only {available} {device} devices for workers")
    needed = (count or 1) * (threads or 1)
    if device == "cpu" and needed > cpus:
        raise WorkerError(
            f"{count or 1} workers of {threads} threads need {needed} cores, but there are {cpus}; "
            "set a smaller workers.threads or workers.count"
        )
    if count is None:
        count = min(available, max(1, trials), cpus // threads if threads and device == "cpu" else available)
    return Placement(device, count, threads or max(1, cpus // count))


class Pool:
    """A set of workers that evaluate (key, recipe, items) in the order of submission, as they become free.

    Args:
        spec: how to build a worker.
        workers: how many.
        retries: further tries of an evaluation whose worker died.
        report: called with a line of text when something worth knowing happens.

    Raises:
        WorkerError: the workers cannot be built.
    """

    def __init__(self, spec: WorkerSpec, workers: int, *, retries: int, report: Any = lambda text: None) -> None:
        self.spec, self.size, self._retries, self._report = spec, workers, retries, report
        gpus = 1 if spec.device == "cuda" else 0
        self._actor = ray.remote(num_cpus=0 if gpus else spec.threads, num_gpus=gpus, max_restarts=0)(Worker)
        self._waiting: deque[_Job] = deque()
        self._running: dict[Any, tuple[_Job, Any]] = {}
        self._deaths: Counter[str] = Counter()
        self._idle: list[Any] = self._build(workers)

    def submit(
        self, key: str, recipe_yaml: str, items: Items, gold: Items | None = None, *, ahead: bool = False
    ) -> None:
        """Queue an evaluation; ``next`` returns its outcome under ``key``.

        Args:
            key: of the recipe.
            recipe_yaml: what to merge.
            items: by task, to respond to.
            gold: by task, to give the probability of the right answer for.
            ahead: before all that waits. Asked at once after an outcome of the same recipe, the worker that holds it
                goes on with it.
        """
        job = _Job(key, recipe_yaml, items, gold or {})
        if ahead:
            self._waiting.appendleft(job)
        else:
            self._waiting.append(job)
        self.dispatch()

    def next(self, timeout: float | None = None) -> tuple[str, Outcome] | None:
        """Return the next finished evaluation, or None after ``timeout`` seconds (or when nothing runs).

        The worker that it came from is idle until `dispatch`, `submit` or the next call of this, so that it can be
        asked for more of the same recipe.

        Raises:
            WorkerError: a dead worker could not be replaced.
        """
        self.dispatch()
        if not self._running:
            return None
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        if not ready:
            return None
        job, actor = self._running.pop(ready[0])
        try:
            outcome = ray.get(ready[0])
            self._idle.append(actor)
        except ray.exceptions.RayError as error:
            return self._bury(job, actor, error)
        return job.key, outcome

    def dispatch(self) -> None:
        """Give what waits to the idle workers."""
        while self._waiting and self._idle:
            job, actor = self._waiting.popleft(), self._idle.pop()
            self._running[actor.evaluate.remote(job.recipe_yaml, job.items, job.gold)] = (job, actor)

    @property
    def busy(self) -> int:
        """The number of workers at work."""
        return len(self._running)

    def close(self) -> None:
        """Stop the workers; evaluations in flight are dropped."""
        for actor in [*self._idle, *(actor for _, actor in self._running.values())]:
            ray.kill(actor)
        self._idle, self._running = [], {}
        self._waiting.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(self, count: int) -> list[Any]:
        actors: list[Any] = [self._actor.remote(self.spec) for _ in range(count)]
        try:
            ray.get([actor.ready.remote() for actor in actors], timeout=BUILD_SECONDS)
        except ray.exceptions.GetTimeoutError as error:
            raise WorkerError(
                f"the workers were not ready after {BUILD_SECONDS} s; Ray has {ray.available_resources()} to offer"
            ) from error
        except ray.exceptions.RayError as error:
            raise WorkerError(f"a worker could not be built:\n{_reason(error)}") from error
        return actors

    def _bury(self, job: _Job, actor: Any, error: Exception) -> tuple[str, Outcome] | None:
        """Replace a dead worker; its evaluation goes back to the head of the queue, or has failed for good."""
        ray.kill(actor)
        self._deaths[job.key] += 1
        deaths = self._deaths[job.key]
        self._report(f"a worker died ({_reason(error).splitlines()[0]}); replaced it")
        self._idle += self._build(1)
        if deaths <= self._retries:
            self._waiting.appendleft(job)
            self.dispatch()
            return None
        self.dispatch()
        text = f"the worker's process died in each of {deaths} tries of this recipe; the last time: {_reason(error)}"
        return job.key, Outcome(None, text, worker_lost=True)


@dataclass(frozen=True)
class _Job:
    key: str
    recipe_yaml: str
    items: Items
    gold: Items


def _reason(error: Exception) -> str:
    """Return a Ray error without Ray's own frames where the cause is one of ours."""
    cause = getattr(error, "cause", None)
    return str(cause or error).strip() or type(error).__name__
