"""The run folder: everything that one experiment writes, and all that resuming it needs.

experiment.yaml   the resolved experiment        journal.log    one line a finished trial, or where the journal lies
front.jsonl       the front, kept current        responses/     per-item responses of every evaluation, a line each
confirmation.json the front on unseen items      report.html    model/   after ``evomerge export``
amortized.json    what surrogates of objectives say, where the searcher fits them
workers.json      what each worker is doing, while the run goes
banks/            item banks, where scores are estimated from a few items
parameter-space/  the run of a hybrid experiment's first stage
tree.json, tree/  which models a nested search merges with which, and the runs of these merges
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, Problem, RunError
from evomerge.experiments import staging
from evomerge.experiments.schema import ExperimentConfig, parse_experiment
from evomerge.recipes import yaml

LOCK_ATTEMPTS = 10


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def experiment(self) -> Path:
        return self.path / "experiment.yaml"

    @property
    def journal(self) -> Path:
        return self.path / staging.JOURNAL

    @property
    def front(self) -> Path:
        return self.path / "front.jsonl"

    @property
    def responses(self) -> Path:
        return self.path / "responses"

    @property
    def banks(self) -> Path:
        return self.path / "banks"

    @property
    def confirmation(self) -> Path:
        return self.path / "confirmation.json"

    @property
    def amortized(self) -> Path:
        return self.path / "amortized.json"

    @property
    def workers(self) -> Path:
        return self.path / "workers.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def tree(self) -> Path:
        return self.path / staging.TREE

    def read_experiment(self) -> ExperimentConfig:
        """Return the experiment whose trials the journal holds: of one in stages, its last.

        Raises:
            RunError: the folder holds no run, or the run does not know its last stage yet.
        """
        return staging.last(self.read_written(), self.path)

    def read_written(self) -> ExperimentConfig:
        """Return the experiment as experiment.yaml has it.

        Raises:
            RunError: the folder holds no run.
        """
        if not self.experiment.is_file():
            raise RunError(
                f"{self.path} holds no run (no experiment.yaml): "
                f"start one with `evomerge run EXPERIMENT --out {self.path}`"
            )
        return parse_experiment(yaml.load(self.experiment), folder=self.path)

    def name_of(self, reference: str) -> str:
        """Return what messages call a model: one inside this folder by its place in it, so that it may be moved."""
        path = Path(reference)
        return str(path.relative_to(self.path.resolve())) if path.is_relative_to(self.path.resolve()) else reference

    @property
    def is_running(self) -> bool:
        """Whether a live process holds the run."""
        try:
            with open(self.path / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the system lets go of it however the process ends.

        Raises:
            RunError: another process holds it.
        """
        try:
            file = open(self.path / ".lock", "a")  # noqa: SIM115 - closed below, after the lock
        except OSError as error:
            raise RunError(f"cannot lock {self.path}: {error.strerror}") from error
        with file:
            for attempt in range(LOCK_ATTEMPTS):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if attempt == LOCK_ATTEMPTS - 1:
                        raise RunError(
                            f"another process is working on {self.path}; wait for it, or stop it first"
                        ) from error
                    time.sleep(0.1)  # `evomerge status` holds it for an instant
            yield


def create(path: Path) -> RunFolder:
    """Make a folder for a new run.

    Raises:
        ConfigError: it holds a run already, or cannot be written.
    """
    folder = RunFolder(path)
    if problems := taken(path):
        raise ConfigError(problems)
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor, probe = tempfile.mkstemp(dir=path)
        os.close(descriptor)
        os.unlink(probe)
    except OSError as error:
        raise ConfigError(
            Problem(f"cannot write there: {error.strerror}", str(path), "name a writable folder with --out")
        ) from error
    return folder


def taken(path: Path) -> list[Problem]:
    """Return why no new run can go into a folder: it holds one."""
    folder = RunFolder(path)
    if not (folder.experiment.exists() or folder.journal.exists()):
        return []
    hint = f"go on with it (`evomerge resume {path}`), name another folder with --out, or remove it"
    return [Problem("the folder already holds a run", str(path), hint)]


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at ``path`` in one step: a reader or a kill sees the old text or the new, never a part.

    Raises:
        RunError: it cannot be written, for instance because the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()  # what it takes may be what others lack
        raise RunError(f"cannot write {path}: {error}; free some space, then resume the run") from error


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as JSON, atomically."""
    write_atomically(path, json.dumps(data, ensure_ascii=False) + "\n")
