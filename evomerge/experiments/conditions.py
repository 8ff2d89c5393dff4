"""The conditions that trials were evaluated under: device and batch size.

The same weights and items give the same responses, bit for bit, on the same device with the same batch size. On others
log-likelihoods may differ in the last digits, and a search that is told them may go another way: then a resumed run is
as good as an undisturbed one, but not equal to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from evomerge.experiments.journal import Trial


class Condition(NamedTuple):
    """Device as workers name it, and the smallest batch size of a trial's tasks; 0 if none of them has batches."""

    device: str
    batch_size: int

    def __str__(self) -> str:
        batches = f", batches of {self.batch_size}" if self.batch_size else ""
        return f"{self.device}{batches}"


def condition_of(trial: Trial) -> Condition | None:
    """Return a trial's condition; None if it was not evaluated on its own."""
    return None if trial.failed or trial.cached or not trial.device else Condition(trial.device, trial.batch_size)


def counted(trials: Iterable[Trial]) -> Counter[Condition]:
    """Return how many trials were evaluated under each condition."""
    return Counter(condition for trial in trials if (condition := condition_of(trial)) is not None)


def warning(counts: Mapping[Condition, int]) -> str:
    """Return what is to be said of several conditions; empty if there is one."""
    if len(counts) < 2:
        return ""
    listed = ", ".join(f"{count} trials on {condition}" for condition, count in counts.items())
    return f"{listed}: scores may differ in the last digits between these, so the run is not exactly repeatable"


class Conditions:
    """Notices conditions while a run goes on.

    Args:
        note: told in one line of each condition but the first.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._seen: set[Condition] = set()

    def check(self, trial: Trial) -> None:
        """Take in a trial."""
        condition = condition_of(trial)
        if condition is None or condition in self._seen:
            return
        if self._seen:
            self._note(
                f"trial {trial.number} was evaluated on {condition}, others on {next(iter(self._seen))}: "
                "scores may differ in the last digits"
            )
        self._seen.add(condition)
