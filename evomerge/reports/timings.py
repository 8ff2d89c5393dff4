"""Where the time of a run went, in words and shares, from what its journal holds.

Times of a worker come from the worker's clock and those of the driver from the driver's, so they are durations only,
never differences between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.reports import wording
from evomerge.reports.summary import TrialRow

IDLE = 0.2  # a larger share of idle workers is what limits a run
DRIVING = 0.5  # of the run's time, from which on the driver is to blame for it


@dataclass(frozen=True)
class Timings:
    """Seconds, summed over the trials; a trial whose recipe was evaluated before took no worker's time.

    Args:
        trials: all of them.
        evaluated: those that took a worker's time.
        forward: of workers, in forward passes.
        merge: of workers, merging.
        other: of workers, on the rest of the evaluations.
        queue: between question and answer, not at work.
        driver: of the driver, with its own work.
        wait: of the driver, waiting for workers.
        available: of the workers that were there; 0 where it is not known (in journals of earlier versions).
    """

    trials: int
    evaluated: int
    forward: float
    merge: float
    other: float
    queue: float
    driver: float
    wait: float
    available: float

    @property
    def busy(self) -> float:
        """Of workers, at work."""
        return self.forward + self.merge + self.other

    @property
    def idle(self) -> float:
        """Of workers that were there, without work."""
        return max(0.0, self.available - self.busy)

    @property
    def wall(self) -> float:
        """How long the search took, without the pauses between sessions; 0 where it is not known."""
        return self.driver + self.wait


@dataclass(frozen=True)
class Part:
    """A part of the workers' time, and its share of it."""

    name: str
    seconds: float
    part: float


@dataclass(frozen=True)
class WorkerTotal:
    """What one worker did: trials, failed ones among them, and seconds at work."""

    name: str
    trials: int
    failed: int
    seconds: float


def timings(trials: Sequence[TrialRow]) -> Timings | None:
    """Return where the time of these trials went; None if nothing was timed."""
    evaluated = [trial for trial in trials if not trial.cached]
    merge, forward = sum(t.merge_seconds for t in evaluated), sum(t.forward_seconds for t in evaluated)
    found = Timings(
        trials=len(trials),
        evaluated=len(evaluated),
        forward=forward,
        merge=merge,
        other=max(0.0, sum(t.seconds for t in evaluated) - merge - forward),
        queue=sum(t.queue_seconds for t in evaluated),
        driver=sum(t.driver_seconds for t in trials),
        wait=sum(t.wait_seconds for t in trials),
        available=sum(t.workers * (t.driver_seconds + t.wait_seconds) for t in trials),
    )
    return found if found.busy > 0 or found.wall > 0 else None


def parts(found: Timings) -> list[Part]:
    """Return the workers' time as parts of the whole."""
    named = {"forward passes": found.forward, "merging": found.merge, "other": found.other}
    if found.available:
        named["idle"] = found.idle
    whole = sum(named.values())
    return [Part(name, seconds, seconds / whole) for name, seconds in named.items()] if whole else []


def driver_line(found: Timings) -> str:
    """Return what the driver did and how long answers took, in a sentence; empty where it is not known."""
    if not found.wall or not found.trials:
        return ""
    own = _brief(found.driver / found.trials)
    text = (
        f"The search took {wording.duration(found.wall)}, {wording.share(found.driver / found.wall)} of it the "
        f"driver's own work ({own} a trial: asking, expressing, scoring, writing)"
    )
    if found.evaluated:
        text += f"; an evaluation waited {_brief(found.queue / found.evaluated)} in the queue"
    return text + "."


def limit(found: Timings) -> str:
    """Return one sentence on what limits the run."""
    shares = {part.name: part.part for part in parts(found)}
    if not found.available:
        return "How long workers were idle is not known: the run was made by an earlier version, or is too short."
    idle = shares.get("idle", 0.0)
    if idle > IDLE:
        lost = f"Workers were idle for {wording.share(idle)} of their time"
        if found.driver > DRIVING * found.wall:
            return f"The driver limits this run: {lost[0].lower()}{lost[1:]} while it asked, scored and wrote."
        return (
            f"{lost}, while the driver mostly waited: too few candidates were open (workers.in_flight), some took much "
            "longer than others, or the run is short."
        )
    most = max(("forward passes", "merging", "other"), key=lambda name: shares[name])
    return {
        "forward passes": "Forward passes limit this run: more or faster workers shorten it, and so do fewer items.",
        "merging": "Merging limits this run: more workers shorten it, and so do parents on a faster disk.",
        "other": (
            "Evaluation outside forward passes limits this run (prompts, tokens, metrics, a function of yours): more "
            "workers shorten it."
        ),
    }[most]


def worker_totals(trials: Sequence[TrialRow]) -> list[WorkerTotal]:
    """Return what each worker did, by name; none where no worker is named."""
    totals: dict[str, list[TrialRow]] = {}
    for trial in trials:
        if not trial.cached:
            totals.setdefault(trial.worker, []).append(trial)
    if not any(totals):
        return []
    return [
        WorkerTotal(
            name or "–", len(own), sum(trial.objectives is None for trial in own), sum(trial.seconds for trial in own)
        )
        for name, own in sorted(totals.items())
    ]


def lines(trials: Sequence[TrialRow]) -> list[str]:
    """Return all of this as lines for the terminal."""
    found = timings(trials)
    if found is None:
        return ["nothing was timed yet"]
    shown = [f"{part.name} {wording.share(part.part)} ({wording.duration(part.seconds)})" for part in parts(found)]
    totals = [
        f"{worker.name}: {worker.trials} trials, {worker.failed} failed, busy {wording.duration(worker.seconds)}"
        for worker in worker_totals(trials)
    ]
    heads = [f"workers' time: {', '.join(shown)}"] if shown else []
    return [line for line in (*heads, driver_line(found), limit(found), *totals) if line]


def _brief(seconds: float) -> str:
    """Return a time that may be milliseconds."""
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else wording.duration(seconds)
