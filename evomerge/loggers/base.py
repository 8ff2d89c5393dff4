"""What an experiment tracker is told, and the table of those that there are."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from evomerge.errors import EvomergeError, Problem
from evomerge.registry import Registry

PROJECT = "evomerge"  # unless the tool's own environment variable names another


class LoggerError(EvomergeError):
    """A tracker that cannot be used as things are (nobody is logged in, for instance)."""


@dataclass(frozen=True)
class ToolRun:
    """The run as a tool knows it.

    Args:
        id: the same in every session of the run, another for every run; letters, digits, ``-``, ``_`` and ``.``.
        name: of the experiment.
        folder: the run's, for tools that write files.
        config: the resolved experiment and the scores of the reference models, as JSON data.
    """

    id: str
    name: str
    folder: Path
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One trial that was told: its number, its numbers by name (``objective/acc``), its end in seconds since 1970."""

    number: int
    numbers: Mapping[str, float]
    time: float


@dataclass(frozen=True)
class Ending:
    """How a session ended: ``summary`` (the winner) and ``files`` (the report) only if the run is finished."""

    outcome: Literal["finished", "interrupted", "failed"]
    summary: Mapping[str, float | str] = field(default_factory=dict)
    files: Sequence[Path] = ()


class Logger(Protocol):
    """A tool's run, opened. Every method may raise whatever it likes, and may block: it has a thread of its own."""

    @property
    def next_step(self) -> int:
        """The first step that the tool does not have yet; earlier ones are not logged again."""

    def log(self, step: Step) -> None:
        """Keep a step; they come in order."""

    def close(self, ending: Ending) -> None:
        """Keep how the session ended, and see that everything is written or sent."""


@dataclass(frozen=True)
class LoggerEntry:
    """A tool: what it is called, the package to import, and how to open its run for ``ToolRun``."""

    title: str
    package: str
    open: Callable[[ToolRun], Logger]


LOGGERS: Registry[LoggerEntry] = Registry(
    "logger",
    modules=(
        "evomerge.loggers.mlflow",
        "evomerge.loggers.tensorboard",
        "evomerge.loggers.trackio",
        "evomerge.loggers.wandb",
    ),
)


def missing(names: Sequence[str], where: str = "") -> list[Problem]:
    """Return a problem for each logger whose package is not installed."""
    return [
        Problem(
            f"the package {LOGGERS[name].package} is not installed",
            where,
            f"pip install 'evomerge[{name}]', or take {name} out of the loggers",
        )
        for name in names
        if importlib.util.find_spec(LOGGERS[name].package) is None
    ]
