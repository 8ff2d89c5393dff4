"""Write a run's report, and those of the merges in its tree, which it links."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.summarise import summarise
from evomerge.reports.html import write_report


def write_reports(path: Path, out: Path | None = None) -> list[Path]:
    """Write the reports of the run in ``path`` and return where they lie, the run's own last.

    Args:
        path: the run's folder.
        out: the file for the run's own report; ``report.html`` in its folder if None. The others lie in their folders.

    Raises:
        RunError: there is no run, or it holds nothing yet.
    """
    own = out or RunFolder(path).report
    summary = summarise(path)
    below = [(path / merge.report).parent for merge in summary.tree if merge.report]
    written = [write_report(summarise(folder), RunFolder(folder).report) for folder in below]
    start = own.parent.resolve()
    linked = [
        replace(merge, report=Path(os.path.relpath((path / merge.report).resolve(), start)).as_posix())
        if merge.report
        else merge
        for merge in summary.tree
    ]
    return [*written, write_report(replace(summary, tree=linked), own)]
