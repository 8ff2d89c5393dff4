"""Where a run stands: its front, hypervolume, best values and pace, kept up to date trial by trial."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from evomerge.experiments import fronts
from evomerge.experiments.journal import Trial
from evomerge.reports.progress import Progress
from evomerge.reports.summary import TrialRow
from evomerge.searchers import ObjectiveSpec


class Tracker:
    """The state of a run that follows from its trials.

    Args:
        objectives: what the trials are scored on.
        reference: the hypervolume's reference point.
    """

    def __init__(self, objectives: Sequence[ObjectiveSpec], reference: Mapping[str, float]) -> None:
        self.objectives, self.reference = tuple(objectives), dict(reference)
        self.trials: list[Trial] = []
        self.front: list[Trial] = []
        self.hypervolume: list[tuple[int, float]] = []
        self.failed = 0
        self.best: dict[str, tuple[float, int]] = {}
        self._started: float | None = None
        self._new = 0

    def add(self, trial: Trial) -> bool:
        """Take in a trial; return whether the front changed."""
        self.trials.append(trial)
        if trial.objectives is None:
            self.failed += 1
            return False
        self._improve(trial)
        candidates = [*self.front, trial]
        keep = [candidates[i] for i in fronts.front([t.objectives or {} for t in candidates], self.objectives)]
        changed = keep != self.front
        self.front = keep
        volume = self.hypervolume[-1][1] if self.hypervolume and not changed else self._volume()
        self.hypervolume.append((trial.number, volume))
        return changed

    def start_clock(self) -> None:
        """Count the pace from now on."""
        self._started, self._new = time.monotonic(), len(self.trials)

    def progress(self, budget: int, in_flight: int, workers: int) -> Progress:
        """Return what a display shows."""
        done = len(self.trials)
        elapsed = time.monotonic() - (self._started or time.monotonic())
        pace = (done - self._new) / elapsed if elapsed > 0 else 0.0
        return Progress(
            done=done,
            budget=budget,
            failed=self.failed,
            in_flight=in_flight,
            workers=workers,
            hypervolume=self.hypervolume[-1][1] if self.hypervolume else None,
            best=dict(self.best),
            per_minute=60 * pace,
            seconds_left=(budget - done) / pace if pace > 0 else None,
            front=[row(trial, on_front=True) for trial in self.front],
        )

    def _improve(self, trial: Trial) -> None:
        for objective in self.objectives:
            value = (trial.objectives or {})[objective.name]
            sign = 1 if objective.direction == "maximize" else -1
            known = self.best.get(objective.name)
            if known is None or sign * value > sign * known[0]:
                self.best[objective.name] = (value, trial.number)

    def _volume(self) -> float:
        return fronts.hypervolume([t.objectives or {} for t in self.front], self.objectives, self.reference)


def row(trial: Trial, *, on_front: bool) -> TrialRow:
    """Return a trial as reports and displays take it."""
    return TrialRow(
        number=trial.number,
        genome=trial.genome,
        objectives=trial.objectives,
        state="failed" if trial.failed else "complete",
        seconds=trial.seconds,
        merge_seconds=trial.merge_seconds,
        forward_seconds=trial.forward_seconds,
        finished=trial.finished,
        error=trial.error,
        truncated=trial.truncated,
        unextracted=trial.unextracted,
        cached=trial.cached,
        worker=trial.worker,
        on_front=on_front,
        standard_errors=trial.standard_errors,
    )
