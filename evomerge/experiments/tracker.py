"""Where a run stands: its front, hypervolume, best values and pace, kept up to date trial by trial."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.experiments import fronts
from evomerge.experiments.journal import Trial
from evomerge.fronts import FrontMeter, Quality
from evomerge.reports.progress import Progress
from evomerge.reports.summary import TrialRow
from evomerge.searchers import ObjectiveSpec


class Tracker:
    """The state of a run that follows from its trials.

    It keeps those on the front only: a run may have more trials than memory has room for.

    Args:
        objectives: what the trials are scored on.
        reference: the hypervolume's reference point.
        known: gains (rows, objectives) of a front known beforehand, from which IGD+ is measured.
    """

    def __init__(
        self, objectives: Sequence[ObjectiveSpec], reference: Mapping[str, float], known: np.ndarray | None = None
    ) -> None:
        self.objectives, self.reference = tuple(objectives), dict(reference)
        self.done = 0
        self.front: list[Trial] = []
        self.changed = False
        self.hypervolume: list[tuple[int, float]] = []
        self.failed = 0
        self.best: dict[str, tuple[float, int]] = {}
        self._rows: list[TrialRow] = []
        self._meter = FrontMeter(self._gains(reference), known)
        self._started: float | None = None
        self._new = 0

    @property
    def quality(self) -> Quality:
        """Of the front so far."""
        return self._meter.quality

    def add(self, trial: Trial) -> None:
        """Take in a trial; ``changed`` then says whether it entered the front."""
        self.done += 1
        self.changed = False
        if trial.objectives is None:
            self.failed += 1
            return
        self._improve(trial)
        change = self._meter.add(self._gains(trial.objectives))
        self.changed = change.entered
        if change.removed is not None:
            kept = [int(place) for place in np.flatnonzero(~change.removed)]
            self.front, self._rows = [self.front[k] for k in kept], [self._rows[k] for k in kept]
        if change.entered:
            # New lists: a display may still be drawing the old ones.
            self.front, self._rows = [*self.front, trial], [*self._rows, row(trial, on_front=True)]
        self.hypervolume.append((trial.number, self.quality.hypervolume))

    def start_clock(self) -> None:
        """Count the pace from now on."""
        self._started, self._new = time.monotonic(), self.done

    def progress(self, budget: int, in_flight: int, workers: int) -> Progress:
        """Return what a display shows."""
        elapsed = time.monotonic() - (self._started or time.monotonic())
        pace = (self.done - self._new) / elapsed if elapsed > 0 else 0.0
        return Progress(
            done=self.done,
            budget=budget,
            failed=self.failed,
            in_flight=in_flight,
            workers=workers,
            hypervolume=self.hypervolume[-1][1] if self.hypervolume else None,
            best=dict(self.best),
            per_minute=60 * pace,
            seconds_left=(budget - self.done) / pace if pace > 0 else None,
            front=self._rows,
            spread=self.quality.spread,
            igd_plus=self.quality.igd_plus,
        )

    def _improve(self, trial: Trial) -> None:
        for objective in self.objectives:
            value = (trial.objectives or {})[objective.name]
            sign = 1 if objective.direction == "maximize" else -1
            known = self.best.get(objective.name)
            if known is None or sign * value > sign * known[0]:
                self.best[objective.name] = (value, trial.number)

    def _gains(self, scores: Mapping[str, float]) -> np.ndarray:
        return fronts.as_gains([scores], self.objectives)[0]


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
        queue_seconds=trial.queue_seconds,
        driver_seconds=trial.driver_seconds,
        wait_seconds=trial.wait_seconds,
        workers=trial.workers,
        finished=trial.finished,
        error=trial.error,
        truncated=trial.truncated,
        unextracted=trial.unextracted,
        cached=trial.cached,
        worker=trial.worker,
        on_front=on_front,
        standard_errors=trial.standard_errors,
    )
