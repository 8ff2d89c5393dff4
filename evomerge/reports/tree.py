"""The tree of a nested run: who is merged with whom, what for, and how good it got."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from evomerge.reports import wording
from evomerge.reports.summary import ConfirmedRow, MergeOfTwo, RunSummary


@dataclass(frozen=True)
class Row:
    """A merge or a parent, ``depth`` merges below the root; ``cells`` are its confirmed scores."""

    depth: int
    label: str
    kind: str
    searched: str
    trials: str
    pick: str
    cells: tuple[str, ...]
    report: str = ""


def rows(summary: RunSummary) -> list[Row]:
    """Return the tree from the root down, each merge before the two models that it merges."""
    merges = {merge.name: merge for merge in summary.tree}
    parents = {row.label: row for row in summary.confirmed if row.kind == "parent"}

    def below(name: str, depth: int) -> Iterator[Row]:
        merge = merges.get(name)
        if merge is None:
            yield Row(depth, name, "parent", "", "", "", _scores(parents.get(name), summary))
            return
        kind = "winner" if merge is summary.tree[-1] else "trial"
        pick = "" if merge.pick is None else _picked(merge)
        cells = _scores(merge.confirmed, summary)
        yield Row(depth, name, kind, ", ".join(merge.objectives), trials(merge), pick, cells, merge.report)
        yield from below(merge.left, depth + 1)
        yield from below(merge.right, depth + 1)

    return list(below(summary.tree[-1].name, 0)) if summary.tree else []


def lines(summary: RunSummary) -> list[str]:
    """Return the tree as a terminal shows it: what is merged lies indented below its merge."""
    found = []
    for row in rows(summary):
        scores = zip(summary.objectives, row.cells, strict=True)
        told = ", ".join(f"{o.name} {cell}" for o, cell in scores if cell != "–")
        what = f"{row.trials} trials, on {row.searched}" if row.trials else ""
        picked = f"{row.pick}: {told}" if row.pick else told
        found.append("  " * row.depth + ": ".join([row.label, "; ".join(filter(None, [what, picked]))]).rstrip(": "))
    return found


def in_words(merge: MergeOfTwo) -> str:
    """Return one merge in a line: of what, what for, and how far it is."""
    what = f"{merge.name} = {merge.left} + {merge.right}, on {', '.join(merge.objectives)}"
    told = f"{what}: {trials(merge)} trials"
    if merge.pick is None or merge.confirmed is None:
        return told
    scores = ", ".join(f"{name} {wording.number(one.value)}" for name, one in merge.confirmed.objectives.items())
    return f"{told}, picked {_picked(merge)} ({scores} on confirmation items)"


def _picked(merge: MergeOfTwo) -> str:
    """Return what the pick is called: a trial, or a confirmed prediction."""
    return merge.confirmed.label if merge.confirmed else f"trial {merge.pick}"


def trials(merge: MergeOfTwo) -> str:
    """Return how many of the merge's trials are done."""
    return str(merge.done) if merge.done == merge.budget else f"{merge.done} of {merge.budget}"


def _scores(row: ConfirmedRow | None, summary: RunSummary) -> tuple[str, ...]:
    known = row.objectives if row else {}
    return tuple(wording.number(known[o.name].value) if o.name in known else "–" for o in summary.objectives)
