"""The pool: Ray actors that evaluate recipes as they become free; they come and go, and what they leave is done again.

Workers are built in the background and join when they are ready. One that dies, hangs, breaks its GPU or goes down with
its machine is replaced, and its evaluation is given to another. Workers that evaluate several recipes in one call are
given what waits in batches.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import ray

from evomerge.errors import WorkerError
from evomerge.redaction import redact
from evomerge.workers.actor import Items, Outcome, Ready, Worker, WorkerSpec
from evomerge.workers.states import WorkerPhase, WorkerState
from evomerge.workers.versions import differences, versions

BUILD_SECONDS = 600.0  # without any worker
FEWEST_FAILED_BUILDS = 3  # in a row, before the pool gives up on more workers
LOOK_SECONDS = 10.0  # between looks at whether there is room for more
PATIENCE = 20.0  # an evaluation may take so many times the longest so far …
LEAST_LIMIT = 600.0  # … and so many seconds in any case


class Pool:
    """A set of workers that evaluate (key, recipe, items) in the order of submission, as they become free.

    Args:
        spec: how to build a worker.
        workers: how many.
        retries: further tries of an evaluation whose worker died, or that failed otherwise.
        report: called with a line of text when something worth knowing happens.
        time_limit: seconds after which a worker hangs; None goes by the evaluations so far.
        room: where machines may join and leave, how many workers there is room for now.

    Attributes:
        batch_sizes: by task, of evaluations to come, where the fitness leaves them to be found.

    Raises:
        WorkerError: no worker can be built.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        workers: int,
        *,
        retries: int,
        report: Callable[[str], None] = lambda text: None,
        time_limit: float | None = None,
        room: Callable[[], int] | None = None,
    ) -> None:
        self.spec, self._wanted, self._room = spec, workers, room
        self._retries, self._report, self._time_limit = retries, report, time_limit
        # A worker that merges ahead works on two recipes at once.
        concurrency = {"max_concurrency": 2} if spec.overlap else {}
        resources = {"num_cpus": 0, "num_gpus": spec.devices} if spec.device == "cuda" else {"num_cpus": spec.threads}
        self._actor: Any = ray.remote(**resources, **concurrency, max_restarts=0)(Worker)  # type: ignore[call-overload]
        self.batch_sizes: Mapping[str, int] = {}
        self._members: list[_Member] = []
        self._waiting: deque[_Job] = deque()
        self._deaths: Counter[str] = Counter()
        self._told: set[tuple[str, str]] = set()
        self._errors: dict[str, list[str]] = {}
        self._suspects: set[str] = set()  # were in a batch whose worker died
        self._finished: deque[tuple[str, Outcome]] = deque()  # of a batch, not yet handed out
        self._failed_builds, self._longest, self._looked = 0, 0.0, time.monotonic()
        self._build(workers)
        self._await_first()

    @property
    def size(self) -> int:
        """How many workers are ready."""
        return sum(member.ready is not None for member in self._members)

    @property
    def busy(self) -> int:
        """The number of workers at work."""
        return sum(bool(member.jobs) for member in self._members)

    def states(self) -> tuple[WorkerState, ...]:
        """Return what each worker is doing."""
        return tuple(member.state() for member in self._members)

    def find_batch_sizes(self, items: Items) -> dict[str, int]:
        """Have one worker find the batch size of each task, before anything is submitted.

        Raises:
            WorkerError: it cannot.
        """
        member = next(member for member in self._members if member.ready is not None)
        try:
            return dict(ray.get(member.actor.batch_sizes.remote(items)))
        except ray.exceptions.RayError as error:
            raise WorkerError(f"no batch size could be found:\n{_reason(error)}") from error

    def submit(
        self,
        key: str,
        recipe_yaml: str,
        items: Items,
        gold: Items | None = None,
        *,
        ahead: bool = False,
        lineage: Mapping[str, str] | None = None,
    ) -> None:
        """Queue an evaluation; ``next`` returns its outcome under ``key``.

        Args:
            key: of the recipe.
            recipe_yaml: what to merge.
            items: by task, to respond to.
            gold: by task, to give the probability of the right answer for.
            ahead: before all that waits. Asked at once after an outcome of the same recipe, the worker that holds it
                goes on with it.
            lineage: hash → packed recipe of trials that the recipe is made of. A worker that needs more of them than
                it is sent answers which (``Outcome.missing``).
        """
        job = _Job(key, recipe_yaml, items, gold or {}, dict(lineage or {}))
        if ahead:
            self._waiting.appendleft(job)
        else:
            self._waiting.append(job)
        self.dispatch()

    def next(self, timeout: float | None = None) -> tuple[str, Outcome] | None:
        """Return the next finished evaluation, or None after ``timeout`` seconds (or when there is nothing to do).

        The worker that it came from is idle until `dispatch`, `submit` or the next call of this, so that it can be
        asked for more of the same recipe.

        Raises:
            WorkerError: no worker is left, and none can be built.
        """
        if self._finished:
            return self._finished.popleft()
        self.dispatch()
        if not self._waiting and not self.busy:
            return None
        self._keep_up()
        events = {event: member for member in self._members for event in member.events()}
        if not events:
            raise WorkerError("all workers are gone, and none can be built; the reasons are above")
        soonest = min(member.left(self._limit) for member in self._members)
        ready, _ = ray.wait(list(events), num_returns=1, timeout=_sooner(timeout, soonest))
        if not ready:
            return self._stop_hanging()
        member = events[ready[0]]
        if ready[0] == member.building:
            self._welcome(member)
            return None
        return self._receive(member, ready[0])

    def dispatch(self) -> None:
        """Give what waits to workers with nothing to do, then to those that can merge ahead."""
        while self._waiting:
            free = [member for member in self._members if member.ready and len(member.jobs) < member.ready.models]
            if not free:
                return
            # The last one that finished comes first: it may hold the recipe.
            member = min(free, key=lambda each: (len(each.jobs), -each.since))
            jobs = self._batch_for(member, math.ceil(len(self._waiting) / len(free)))
            first = jobs[0]
            if len(jobs) == 1:
                question = (first.recipe_yaml, first.items, first.gold, self.batch_sizes, first.lineage)
                event = member.actor.evaluate.remote(*question)
            else:
                recipes = [(job.recipe_yaml, job.lineage) for job in jobs]
                event = member.actor.evaluate_batch.remote(recipes, first.items, first.gold)
            member.begin(event, jobs)

    def _batch_for(self, member: _Member, share: int) -> tuple[_Job, ...]:
        """Take from what waits as much as the worker evaluates at once, of the same items, and no more than its share.

        What was in a batch whose worker died is tried alone, as it may have been its death.
        """
        jobs = [self._waiting.popleft()]
        most = 1 if self._is_suspect(jobs[0]) or member.ready is None else min(member.ready.batch, share)
        while len(jobs) < most and self._waiting and self._waiting[0].asks_like(jobs[0]):
            if self._is_suspect(self._waiting[0]):
                break
            jobs.append(self._waiting.popleft())
        return tuple(jobs)

    def _is_suspect(self, job: _Job) -> bool:
        return job.key in self._suspects

    def withdraw(self) -> list[str]:
        """Drop the evaluations that no worker has begun; return their keys."""
        keys = [job.key for job in self._waiting]
        self._waiting.clear()
        return keys

    def close(self) -> None:
        """Stop the workers; evaluations in flight are dropped."""
        for member in self._members:
            ray.kill(member.actor)
        self._members = []
        self._waiting.clear()
        self._finished.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(self, count: int) -> None:
        for _ in range(count):
            actor: Any = self._actor.remote(self.spec)
            self._members.append(_Member(actor, actor.ready.remote()))

    def _await_first(self) -> None:
        """Wait for the first worker, whose faults are everybody's.

        Raises:
            WorkerError: none can be built.
        """
        try:
            starting = {member.building: member for member in self._members}
            ready, _ = ray.wait(list(starting), num_returns=1, timeout=BUILD_SECONDS)
            if not ready:
                raise WorkerError(
                    f"no worker was ready after {BUILD_SECONDS:g} s: Ray has no room for one (what is not taken: "
                    f"{_left()}), or the machines are too busy to start it; try again, or with fewer workers.count"
                )
            try:
                self._join(starting[ready[0]])
            except ray.exceptions.RayError as error:
                raise WorkerError(f"a worker could not be built:\n{_reason(error)}") from error
        except WorkerError:
            self.close()
            raise

    def _welcome(self, member: _Member) -> None:
        """Let a worker that was being built join, or note why it cannot."""
        try:
            self._join(member)
            self._failed_builds = 0
        except ray.exceptions.RayError as error:
            self._members.remove(member)
            self._failed_builds += 1
            self._report(f"a worker could not be built: {_reason(error).splitlines()[-1]}")
            if self._failed_builds == FEWEST_FAILED_BUILDS:
                self._report(f"{self._failed_builds} in a row: going on with {self.size}")
            self._replace()

    def _join(self, member: _Member) -> None:
        """Take in a worker that is built; its libraries may be others than the driver's."""
        ready: Ready = ray.get(member.building)
        member.joined(ready)
        for difference in differences(versions(), ready.versions):
            if (ready.node, difference) not in self._told:
                self._told.add((ready.node, difference))
                self._report(f"warning: {ready.node}: {difference}")

    def _replace(self) -> None:
        """Build workers until there are as many as wanted."""
        if self._failed_builds < FEWEST_FAILED_BUILDS:
            self._build(self._wanted - len(self._members))

    def _keep_up(self) -> None:
        """Where machines join and leave, have as many workers as there is room for."""
        now = time.monotonic()
        if self._room is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        room = max(1, self._room())
        if room > self._wanted:
            self._report(f"room for {room} workers now: starting {room - self._wanted} more")
        self._wanted = room
        for member in [m for m in self._members if m.ready is None][: max(0, len(self._members) - room)]:
            self._members.remove(member)  # it waits for a machine that is gone
            ray.kill(member.actor)
        self._replace()

    def _receive(self, member: _Member, event: Any) -> tuple[str, Outcome] | None:
        """Take in what a worker sends: an outcome, those of a batch, or its death."""
        try:
            answer: Outcome | list[Outcome] = ray.get(event)
        except ray.exceptions.RayError as error:
            return self._bury(member, _reason(error))
        outcomes = [answer] if isinstance(answer, Outcome) else answer
        jobs = member.end(event, outcomes)
        if broken := next((outcome for outcome in outcomes if outcome.worker_broken), None):
            self._report(f"a worker's GPU failed ({_last_line(broken.error)}); replacing the worker")
            self._discard(member)
        again = []
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome.responses is not None:
                self._longest = max(self._longest, outcome.seconds)
            elif not outcome.missing and self._is_worth_another_try(job.key, _last_line(outcome.error)):
                again.append(job)
                continue
            self._finished.append((job.key, outcome))
        if again:
            self._waiting.extendleft(reversed(again))
            self.dispatch()
        return self._finished.popleft() if self._finished else None

    def _is_worth_another_try(self, key: str, error: str) -> bool:
        """Whether a failure may pass: not if it comes again in the same words, and only so often."""
        errors = self._errors.setdefault(key, [])
        errors.append(error)
        return len(errors) <= self._retries and error not in errors[:-1]

    def _bury(self, member: _Member, reason: str) -> tuple[str, Outcome] | None:
        """Replace a dead worker; its evaluation goes back to the head of the queue, or has failed for good."""
        jobs = next(iter(member.jobs.values()))
        by_machine = _is_lost(member)
        self._report(f"a worker died ({'its machine is gone' if by_machine else _first_line(reason)}); replacing it")
        member.jobs.pop(next(iter(member.jobs)))
        self._discard(member)
        if len(jobs) > 1:
            self._suspects |= {job.key for job in jobs}
        elif not by_machine:
            self._deaths[jobs[0].key] += 1
        deaths = self._deaths[jobs[0].key]
        if len(jobs) > 1 or deaths <= self._retries:
            self._waiting.extendleft(reversed(jobs))
            self.dispatch()
            return None
        self.dispatch()
        text = f"the worker's process died in each of {deaths} tries of this recipe; the last time: {reason}"
        return jobs[0].key, Outcome(None, text, worker_lost=True)

    def _stop_hanging(self) -> tuple[str, Outcome] | None:
        """Kill a worker whose evaluation takes too long."""
        limit = self._limit
        for member in self._members:
            if member.left(limit) <= 0:
                return self._bury(member, f"an evaluation took longer than {limit or 0:.0f} s")
        return None

    def _discard(self, member: _Member) -> None:
        """Kill a worker; what else it had goes back to the head of the queue."""
        ray.kill(member.actor)
        self._members.remove(member)
        self._waiting.extendleft(reversed([job for jobs in member.jobs.values() for job in jobs]))
        self._replace()

    @property
    def _limit(self) -> float | None:
        """Seconds that an evaluation may take; None before anything is known of that."""
        if self._time_limit is not None:
            return self._time_limit
        return max(LEAST_LIMIT, PATIENCE * self._longest) if self._longest else None


@dataclass(frozen=True)
class _Job:
    key: str
    recipe_yaml: str
    items: Items
    gold: Items
    lineage: Mapping[str, str]

    def asks_like(self, other: _Job) -> bool:
        """Whether both ask for the same items; by identity first, as lists of items may be long."""
        return (self.items is other.items or self.items == other.items) and (
            self.gold is other.gold or self.gold == other.gold
        )


@dataclass(eq=False)
class _Member:
    """A worker: being built, or ready with the jobs that it was given, in batches; those it works on first."""

    actor: Any
    building: Any
    ready: Ready | None = None
    jobs: dict[Any, tuple[_Job, ...]] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: int = 0

    def events(self) -> Iterator[Any]:
        """Yield what to wait for."""
        if self.ready is None:
            yield self.building
        yield from self.jobs

    def joined(self, ready: Ready) -> None:
        self.ready, self.since = ready, time.monotonic()

    def begin(self, event: Any, jobs: tuple[_Job, ...]) -> None:
        if not self.jobs:
            self.since = time.monotonic()
        self.jobs[event] = jobs

    def end(self, event: Any, outcomes: Sequence[Outcome]) -> tuple[_Job, ...]:
        answered = [outcome for outcome in outcomes if not outcome.missing]
        self.since = time.monotonic()
        self.done += len(answered)
        self.failed += sum(outcome.responses is None for outcome in answered)
        return self.jobs.pop(event)

    def left(self, limit: float | None) -> float:
        """Return the seconds left to the batch at work; infinite without one, or without a limit."""
        if not self.jobs or limit is None:
            return math.inf
        return self.since + limit * len(next(iter(self.jobs.values()))) - time.monotonic()

    def state(self) -> WorkerState:
        seconds = time.monotonic() - self.since
        if self.ready is None:
            return WorkerState("", "", "", "starting", seconds=seconds)
        key = next((jobs[0].key for jobs in self.jobs.values()), "")
        phase: WorkerPhase = "busy" if key else "idle"
        return WorkerState(
            self.ready.name, self.ready.node, self.ready.device, phase, key, seconds, self.done, self.failed
        )


def _is_lost(member: _Member) -> bool:
    """Whether the worker's machine has left the cluster."""
    return member.ready is not None and any(
        node["NodeID"] == member.ready.node_id and not node["Alive"] for node in ray.nodes()
    )


def _sooner(timeout: float | None, left: float) -> float | None:
    """Return how long to wait; None for as long as it takes."""
    seconds = min(math.inf if timeout is None else timeout, left)
    return None if seconds == math.inf else max(0.0, seconds)


def _left() -> str:
    """Return what of Ray's processors no worker has taken."""
    left = ray.available_resources()
    return ", ".join(f"{left.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))


def _reason(error: Exception) -> str:
    """Return a Ray error without Ray's own frames where the cause is one of ours."""
    cause = getattr(error, "cause", None)
    return redact(str(cause or error)).strip() or type(error).__name__


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]


def _last_line(text: str | None) -> str:
    return ((text or "").strip().splitlines() or [""])[-1]
