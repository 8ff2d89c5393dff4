"""The workers of a run in a few lines: those worth looking at, and a count of the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from evomerge.reports import wording
from evomerge.reports.progress import WorkerRow

ROWS = 8
PHASES = ("busy", "idle", "starting")
COLUMNS = ("worker", "device", "state", "since", "done", "failed", "per min")


def worker_table(rows: Sequence[WorkerRow], *, limit: int | None = ROWS, later: float = 0.0) -> Table:
    """Return a table of the workers that have been in their state for longest, and a line on the others.

    Args:
        rows: the workers.
        limit: show at most this many; None shows all.
        later: seconds that passed since.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for column in COLUMNS:
        left = column in COLUMNS[:3]
        table.add_column(column, header_style="dim", justify="left" if left else "right", no_wrap=True)
    shown = sorted(rows, key=lambda row: (PHASES.index(row.phase), -row.seconds))[:limit]
    for row in sorted(shown, key=lambda row: row.name or "~"):
        table.add_row(
            Text(row.name or "–", overflow="ellipsis"),
            Text(row.device or "–", overflow="ellipsis"),
            Text(row.work or row.phase, style="bold" if row.work else "dim"),
            wording.duration(row.seconds + later),
            str(row.done),
            Text(str(row.failed), style="red" if row.failed else "dim"),
            f"{row.per_minute:.1f}",
        )
    left_out = len(rows) - len(shown)
    if left_out:
        hidden = Counter(row.phase for row in rows)
        hidden.subtract(Counter(row.phase for row in shown))
        counts = ", ".join(f"{hidden[phase]} {phase}" for phase in PHASES if hidden[phase])
        table.caption = Text(f"and {left_out} more: {counts}", style="dim")
        table.caption_justify = "left"
    return table


def workers_line(rows: Sequence[WorkerRow]) -> str:
    """Return how many workers are in which state, and how many evaluations a minute they finish together."""
    phases = Counter(row.phase for row in rows)
    counts = ", ".join(f"{phases[phase]} {phase}" for phase in PHASES if phases[phase])
    pace = sum(row.per_minute for row in rows)
    return f"{counts}; {pace:.0f} evaluations/min" if pace >= 10 else f"{counts}; {pace:.1f} evaluations/min"
