"""Every error that evomerge raises on purpose.

EvomergeError                     the root; the command line prints it without a traceback
├── ConfigError                   files or flags of the user's that cannot mean what they say (carries all problems)
├── UnknownNameError              a name that no registry, library or folder holds (carries suggestions)
├── CheckpointError               a parent on disk that cannot be read or does not fit the others
├── MergeError                    a recipe that cannot be carried out on these parents
├── FitnessError                  a task, metric or user function that cannot be evaluated
├── WorkerError                   the pool cannot go on (no resources, every trial failed)
├── RunError                      a run folder that cannot be started, resumed or read
└── ExportError                   a model that could not be written, verified or uploaded
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class EvomergeError(Exception):
    """Root of the errors that evomerge raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the user's input: what, where, and how to go on."""

    what: str
    where: str = ""
    suggestion: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f"\n    → {self.suggestion}" if self.suggestion else ""
        return f"{place}{self.what}{hint}"


class ConfigError(EvomergeError):
    """Input that cannot be used; holds every problem found, so that they can be mended at once."""

    def __init__(self, problems: Sequence[Problem] | Problem | str) -> None:
        if isinstance(problems, str):
            problems = [Problem(problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UnknownNameError(EvomergeError):
    """A name that does not exist; the message lists the nearest valid ones."""

    def __init__(self, kind: str, name: str, valid: Iterable[str], searched: str = "") -> None:
        self.kind, self.name, self.valid = kind, name, sorted(valid)
        places = f" (searched: {searched})" if searched else ""
        super().__init__(f"unknown {kind} {name!r}{places}; {suggest(name, self.valid)}")


class CheckpointError(EvomergeError):
    """A parent on disk that cannot be read, or that does not fit the others."""


class MergeError(EvomergeError):
    """A recipe that cannot be carried out on these parents."""


class FitnessError(EvomergeError):
    """A task, metric or user function that cannot be evaluated."""


class WorkerError(EvomergeError):
    """The pool of workers cannot go on."""


class RunError(EvomergeError):
    """A run folder that cannot be started, resumed or read."""


class ExportError(EvomergeError):
    """A model that could not be written, verified or uploaded."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` when a near name exists, else the list of valid names."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    if not names:
        return "there are none"
    return "valid names: " + ", ".join(names)
