"""How a run tells the world that it moves: the display's contract, without any display.

The loop (``evomerge.experiments``) calls it; ``evomerge.cli.display`` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from evomerge.reports.summary import ObjectiveInfo, ReferenceRow, TrialRow


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a trial was told.

    ``failed`` is part of ``done``. ``best`` maps an objective to its best value so far and the trial that has
    it. ``per_minute`` counts trials; ``front`` holds the current front, which a display may cut. ``spread`` and
    ``igd_plus`` are the front's, where there are such.
    """

    done: int
    budget: int
    failed: int = 0
    in_flight: int = 0
    workers: int = 0
    hypervolume: float | None = None
    best: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    per_minute: float = 0.0
    seconds_left: float | None = None
    front: Sequence[TrialRow] = ()
    spread: float | None = None
    igd_plus: float | None = None


@dataclass(frozen=True)
class WorkerRow:
    """One worker: where it runs and what it does.

    ``phase`` is ``starting``, ``idle`` or ``busy``, for ``seconds`` by now; ``work`` is what it is busy with
    (``trial 12``). It finished ``done`` evaluations, ``per_minute`` of them a minute since it was there; ``failed`` of
    them failed.
    """

    name: str
    node: str
    device: str
    phase: str
    work: str = ""
    seconds: float = 0.0
    done: int = 0
    failed: int = 0
    per_minute: float = 0.0


class Display(Protocol):
    """Shows a run while it goes. Used as a context manager around ``started``, ``told``…, ``finished``."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def started(
        self,
        name: str,
        objectives: Sequence[ObjectiveInfo],
        budget: int,
        done: int,
        references: Sequence[ReferenceRow],
    ) -> None:
        """Say what is about to run; ``done`` > 0 when a run is resumed."""

    def told(self, trial: TrialRow, progress: Progress) -> None:
        """Show the trial that was just told to the searcher and where the run stands."""

    def workers(self, rows: Sequence[WorkerRow]) -> None:
        """Show what each worker is doing now; no rows when the workers are gone. Called about twice a second."""

    def note(self, text: str) -> None:
        """Print a line that stays (a replaced worker, a phase that begins)."""

    def finished(self, summary_line: str) -> None:
        """Show the end state and one closing line."""
