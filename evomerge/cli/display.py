"""A run in the terminal while it goes: a live view on a terminal, plain lines anywhere else.

Both draw what ``evomerge.reports.progress`` describes; the run does not know which one it talks to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evomerge.redaction import redact
from evomerge.reports import wording
from evomerge.reports.progress import Display, Progress, WorkerRow
from evomerge.reports.summary import ObjectiveInfo, ReferenceRow, TrialRow, best_parent
from evomerge.reports.tables import front_table
from evomerge.reports.worker_table import worker_table

__all__ = ["Display", "LiveDisplay", "PlainDisplay", "Progress", "make_display"]

FRONT_ROWS = 5
PLAIN_STEP = 0.05  # a plain line at least at every twentieth of the budget …
PLAIN_SECONDS = 30.0  # … and after so many seconds without one

Clock = Callable[[], float]


def make_display(console: Console | None = None) -> Display:
    """Return the live display if ``console`` (standard output if None) is a terminal, else the plain one."""
    console = console or Console()
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveDisplay(console) if live else PlainDisplay(console)


class PlainDisplay:
    """One line for every twentieth of the budget, for every half minute, and for the first failure.

    Args:
        console: where the lines go; a line is never wrapped or coloured.
        clock: seconds that only grow.
    """

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._objectives: Sequence[ObjectiveInfo] = ()
        self._references: Sequence[ReferenceRow] = ()
        self._shown, self._shown_at, self._failures_shown = 0, 0.0, 0

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def started(
        self,
        name: str,
        objectives: Sequence[ObjectiveInfo],
        budget: int,
        done: int,
        references: Sequence[ReferenceRow],
    ) -> None:
        """Print what runs, and the score to beat in each objective."""
        self._objectives, self._references = objectives, references
        self._shown, self._shown_at = done, self._clock()
        begin = f"goes on after {done} of {budget} trials" if done else f"{budget} trials"
        self.note(f"{name}: {begin}; objectives: {', '.join(o.title for o in objectives)}")
        for objective in objectives:
            if line := _to_beat(objective, references):
                self.note(f"  {objective.name}: {line}")

    def told(self, trial: TrialRow, progress: Progress) -> None:
        """Print a line when one is due."""
        if trial.objectives is None and not self._failures_shown:
            self._failures_shown += 1
            self.note(f"trial {trial.number} failed: {_reason(trial)} (later failures are only counted)")
        now = self._clock()
        step = progress.done - self._shown >= max(1.0, PLAIN_STEP * progress.budget)
        last = progress.done >= progress.budget
        if step or last or now - self._shown_at >= PLAIN_SECONDS:
            self._shown, self._shown_at = progress.done, now
            self.note(self._line(trial, progress))

    def workers(self, rows: Sequence[WorkerRow]) -> None:
        """Print nothing: a log is no place for what passes, and lost workers are notes."""

    def note(self, text: str) -> None:
        """Print ``text`` as it is, without secrets."""
        self._console.print(Text(redact(text)), soft_wrap=True, highlight=False)

    def finished(self, summary_line: str) -> None:
        """Print the closing line."""
        self.note(summary_line)

    def _line(self, trial: TrialRow, progress: Progress) -> str:
        parts = [f"trial {progress.done}/{progress.budget}"]
        parts += [self._score(objective, trial, progress) for objective in self._objectives]
        if progress.hypervolume is not None and len(self._objectives) > 1:
            parts += [f"hv {wording.number(progress.hypervolume)}", f"front {len(progress.front)}"]
            parts += wording.front_measures(progress.spread, progress.igd_plus)
        if progress.failed:
            parts.append(f"failed {progress.failed}")
        parts.append(_rate(progress.per_minute))
        if progress.seconds_left is not None and progress.done < progress.budget:
            parts.append(f"{wording.duration(progress.seconds_left)} left")
        return "  ".join(parts)

    def _score(self, objective: ObjectiveInfo, trial: TrialRow, progress: Progress) -> str:
        value = (trial.objectives or {}).get(objective.name)
        known = []
        if objective.name in progress.best:
            known.append(f"best {wording.number(progress.best[objective.name][0])}")
        if parent := best_parent(self._references, objective):
            known.append(f"best parent {wording.number(parent.objectives[objective.name])}")
        shown = "failed" if value is None else wording.number(value)
        return f"{objective.name} {shown}" + (f" ({', '.join(known)})" if known else "")


class LiveDisplay:
    """A view that is redrawn in place: progress, the best so far against the parents, the front's first rows.

    Args:
        console: a terminal.
        clock: seconds that only grow; the time left counts down by it between trials.
    """

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._name, self._started_at, self._told_at = "", clock(), clock()
        self._objectives: Sequence[ObjectiveInfo] = ()
        self._references: Sequence[ReferenceRow] = ()
        self._progress = Progress(done=0, budget=0)
        self._last_failure = ""
        self._workers: Sequence[WorkerRow] = ()
        self._workers_at = clock()
        self._live = Live(console=console, get_renderable=self.view, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def started(
        self,
        name: str,
        objectives: Sequence[ObjectiveInfo],
        budget: int,
        done: int,
        references: Sequence[ReferenceRow],
    ) -> None:
        """Show the run's name, its budget and the scores to beat."""
        self._name, self._objectives, self._references = name, objectives, references
        self._progress = Progress(done=done, budget=budget)
        self._started_at = self._told_at = self._clock()
        self._live.refresh()

    def told(self, trial: TrialRow, progress: Progress) -> None:
        """Show where the run stands; the screen is redrawn a few times a second, not at every trial."""
        self._progress, self._told_at = progress, self._clock()
        if trial.objectives is None:
            self._last_failure = f"trial {trial.number}: {_reason(trial)}"

    def workers(self, rows: Sequence[WorkerRow]) -> None:
        """Show the workers at the next redraw."""
        self._workers, self._workers_at = rows, self._clock()

    def note(self, text: str) -> None:
        """Print ``text`` above the view, where it stays; without secrets."""
        self._console.print(Text(redact(text)))

    def finished(self, summary_line: str) -> None:
        """Leave the view on the screen, without the workers, and print the closing line below it."""
        self._workers = ()
        self._live.transient = False
        self._live.stop()
        self._console.print(Text(summary_line, style="bold"))

    def view(self) -> RenderableType:
        """Return what the terminal shows now."""
        progress = self._progress
        parts: list[RenderableType] = [self._head(progress)]
        if self._objectives:
            parts.append(self._best_table(progress))
        if progress.front and len(self._objectives) > 1:
            title = [
                f"Front: {len(progress.front)} trials",
                *wording.front_measures(progress.spread, progress.igd_plus),
            ]
            parts.append(front_table(progress.front, self._objectives, limit=FRONT_ROWS, title=", ".join(title)))
        if self._workers:
            parts.append(worker_table(self._workers, later=self._clock() - self._workers_at))
        if self._last_failure:
            parts.append(Text(f"last failure: {self._last_failure}", style="red", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)

    def _head(self, progress: Progress) -> RenderableType:
        line = Table.grid(padding=(0, 2))
        line.add_row(
            Text(self._name, style="bold", no_wrap=True, overflow="ellipsis"),
            ProgressBar(total=max(1, progress.budget), completed=progress.done, width=24),
            Text(f"{progress.done}/{progress.budget}", style="bold"),
            Text(self._time_text(progress)),
        )
        facts = [_rate(progress.per_minute)]
        if progress.hypervolume is not None and len(self._objectives) > 1:
            facts.append(f"hypervolume {wording.number(progress.hypervolume)}")
        if progress.workers:
            facts.append(f"workers busy {min(progress.in_flight, progress.workers)}/{progress.workers}")
        status = Text("  ".join(facts), style="dim")
        if progress.failed:
            status.append(f"  failed {progress.failed}", style="red")
        return Group(line, status)

    def _time_text(self, progress: Progress) -> str:
        if progress.seconds_left is None or progress.done >= progress.budget:
            return wording.duration(round(self._clock() - self._started_at))
        since = self._clock() - self._told_at
        return f"{wording.duration(round(max(0.0, progress.seconds_left - since)))} left"

    def _best_table(self, progress: Progress) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("objective", "best so far", "trial", "to beat"):
            table.add_column(heading, header_style="dim", justify="right" if heading == "trial" else "left")
        for objective in self._objectives:
            value, trial = progress.best.get(objective.name, (None, None))
            beats = value is not None and _beats(value, objective, self._references)
            table.add_row(
                Text(objective.title),
                Text("–" if value is None else wording.number(value), style="bold green" if beats else "bold"),
                "–" if trial is None else str(trial),
                Text(_to_beat(objective, self._references), style="dim"),
            )
        return table


def _beats(value: float, objective: ObjectiveInfo, references: Sequence[ReferenceRow]) -> bool:
    levels = [row.objectives[objective.name] for row in references if objective.name in row.objectives]
    return all(objective.sign * value > objective.sign * level for level in levels)


def _to_beat(objective: ObjectiveInfo, references: Sequence[ReferenceRow]) -> str:
    """Return the best parent's and the uniform merge's score in words; empty when there are none."""
    parts = []
    if parent := best_parent(references, objective):
        parts.append(f"best parent {wording.number(parent.objectives[objective.name])} ({parent.name})")
    for row in references:
        if row.kind == "uniform" and objective.name in row.objectives:
            parts.append(f"uniform {wording.number(row.objectives[objective.name])}")
    return ", ".join(parts)


def _rate(per_minute: float) -> str:
    return f"{per_minute:.0f}/min" if per_minute >= 10 else f"{per_minute:.1f}/min"


def _reason(trial: TrialRow) -> str:
    lines = (trial.error or "").strip().splitlines()
    return lines[-1] if lines else "no message"
