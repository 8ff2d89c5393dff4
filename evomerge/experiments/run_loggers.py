"""The loggers of one session of a run: what of a run they are told, and when.

They are told every trial of the journal, those of earlier sessions as well, and each skips what its tool has already:
so nothing is missing after a kill, and a logger may be added to a run that has begun.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from evomerge.experiments.confirmation import Confirmation
from evomerge.experiments.journal import Journal, Trial
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.schema import ExperimentConfig, write_experiment
from evomerge.loggers import LOGGERS, Background, Ending, Step, ToolRun
from evomerge.recipes import yaml
from evomerge.redaction import redact

FACT = "logged_as"
FINISHED_SECONDS = 60.0  # for uploading the report
STOPPED_SECONDS = 10.0
STOPPED = Ending("interrupted")


class RunLoggers:
    """The loggers that the experiment names; with none, every method does nothing.

    Args:
        folder: of the run.
        experiment: whose trials the folder's journal holds.
        journal: keeps by what name the run is logged.
        note: called with lines of text.
    """

    def __init__(
        self, folder: RunFolder, experiment: ExperimentConfig, journal: Journal, note: Callable[[str], None]
    ) -> None:
        self._folder, self._experiment, self._journal, self._note = folder, experiment, journal, note
        self._open: list[Background] = []
        self._ending: Ending | None = None

    def begin(self, references: Sequence[Mapping[str, Any]]) -> None:
        """Open the tools' runs, in the background.

        Args:
            references: the reference models, as the journal has them.
        """
        if not self._experiment.loggers:
            return
        known = self._journal.facts().get(FACT)
        if known is None:
            known = f"{re.sub('[^A-Za-z0-9_.-]', '-', self._experiment.name)}-{secrets.token_hex(4)}"
            self._journal.note(FACT, known)
        settings = dict(_without_secrets(yaml.loads(write_experiment(self._experiment), "experiment").data))
        settings.pop("journal", None)  # the address of a server is nobody else's business
        config = {
            **settings,
            "references": {str(row["name"]): dict(row["objectives"]) for row in references},
        }
        run = ToolRun(str(known), self._experiment.name, self._folder.path, config)
        for name in self._experiment.loggers:
            entry = LOGGERS[name]
            self._open.append(Background(entry.title, partial(entry.open, run), self._note))

    def told(self, trial: Trial, failures: int) -> None:
        """Log a trial; ``failures`` counts the failed ones up to it."""
        for logger in self._open:
            logger.log(trial.number, lambda: Step(trial.number, numbers_of(trial, failures), _seconds(trial)))

    def confirmed(self, confirmation: Confirmation) -> None:
        """Log the winner and the report, which is written for it."""
        if not self._open:
            return
        # Heavy, and the command line writes it only once the run is over.
        from evomerge.experiments.summarise import summarise
        from evomerge.reports.html import write_report

        summary = replace(summarise(self._folder.path), status="finished")
        files = (write_report(summary, self._folder.report), self._folder.front, self._folder.confirmation)
        self._ending = Ending("finished", winner_of(confirmation), files)

    def close(self, ending: Ending) -> None:
        """Log how the session ended, unless it is known that the run is finished; waits, within limits."""
        ending = self._ending or ending
        for logger in self._open:
            logger.close(ending, FINISHED_SECONDS if ending.outcome == "finished" else STOPPED_SECONDS)
        self._open = []


@contextmanager
def open_loggers(
    folder: RunFolder, experiment: ExperimentConfig, journal: Journal, note: Callable[[str], None]
) -> Iterator[RunLoggers]:
    """Give loggers that are closed at the end, however that comes about."""
    loggers = RunLoggers(folder, experiment, journal, note)
    try:
        yield loggers
    except Exception:
        loggers.close(Ending("failed"))
        raise
    finally:
        loggers.close(STOPPED)


def numbers_of(trial: Trial, failures: int) -> dict[str, float]:
    """Return what is logged of a trial, by name; choices among words are left out, as is what is not finite."""
    numbers: dict[str, float] = {f"objective/{name}": value for name, value in (trial.objectives or {}).items()}
    numbers |= {f"standard_error/{name}": value for name, value in trial.standard_errors.items()}
    numbers |= {f"front/{name}": value for name, value in trial.front.items()}
    numbers |= {f"genome/{name}": value for name, value in trial.genome.items() if not isinstance(value, str)}
    numbers |= {
        "seconds/trial": trial.seconds,
        "seconds/merge": trial.merge_seconds,
        "seconds/forward": trial.forward_seconds,
        "seconds/queue": trial.queue_seconds,
        "seconds/driver": trial.driver_seconds,
        "failures": failures,
        "failed": trial.failed,
    }
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def winner_of(confirmation: Confirmation) -> dict[str, float | str]:
    """Return the pick's number, its scores on the confirmation items and how it compares, by name."""
    row = confirmation.picked
    return {
        "winner/trial": confirmation.pick,
        "winner/rule": confirmation.rule,
        **{f"winner/{name}": value for name, value in row.scores.items()},
        **{f"winner/p_value against {c.against}": c.p_value for c in confirmation.comparisons},
    }


def _without_secrets(value: Any) -> Any:
    """Return JSON data with secrets in its texts hidden."""
    if isinstance(value, Mapping):
        return {name: _without_secrets(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_secrets(each) for each in value]
    return redact(value) if isinstance(value, str) else value


def _seconds(trial: Trial) -> float:
    return trial.finished.timestamp() if trial.finished else 0.0
