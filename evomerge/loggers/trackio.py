"""Trackio. ``TRACKIO_DIR``, ``TRACKIO_SPACE_ID`` and ``TRACKIO_SERVER_URL`` mean what they always do."""

from __future__ import annotations

from typing import Any

from evomerge.loggers.base import LOGGERS, PROJECT, Ending, LoggerEntry, Step, ToolRun


class TrackioLogger:
    """Continues the run of the same name in the project ``evomerge``."""

    def __init__(self, run: ToolRun) -> None:
        import trackio

        self._id = run.id
        self._run: Any = trackio.init(
            PROJECT,
            name=run.id,
            config=dict(run.config),
            resume="allow",
            private=True,  # of a Space that is made for it
            embed=False,
        )
        self.next_step = int(self._run._next_step)  # known of local and of remote projects, but not by a public name
        self._last = self.next_step - 1

    def log(self, step: Step) -> None:
        """Hand a step to trackio's own thread."""
        self._run.log(dict(step.numbers), step=step.number)
        self._last = step.number

    def close(self, ending: Ending) -> None:
        """Log the winner's numbers with the last step, the files as artifacts, and wait for trackio's thread."""
        numbers = {name: value for name, value in ending.summary.items() if not isinstance(value, str)}
        if numbers:
            self._run.log(numbers, step=max(0, self._last))
        for path in ending.files:
            self._run.log_artifact(path, name=f"{self._id}-{path.stem}", type="report")
        self._run.finish()


LOGGERS.add("trackio", LoggerEntry("Trackio", "trackio", TrackioLogger), origin=__name__)
