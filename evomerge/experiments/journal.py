"""The journal: the run's append-only log of trials, an Optuna study on ``JournalStorage``.

One durable line a finished trial, appended in ask order, so that Optuna's trial numbers are ours and any Optuna tool
(optuna-dashboard, ``optuna.visualization``) reads a run as it is. The journal is the run's only state: searchers and
fronts are rebuilt from it. A line torn by a kill is cut off when the journal is next opened for writing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.errors import RunError
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, Gene, IntGene, Value
from evomerge.searchers import ObjectiveSpec

PREFIX = "evomerge:"


@dataclass(frozen=True)
class Trial:
    """One proposed and evaluated genome. ``objectives`` is None when the trial failed; times are in seconds.

    ``standard_errors`` are those of estimated objectives, ``own`` their values and standard errors before smoothing;
    ``items`` tells how many of each task were asked. ``front`` is the quality of the run's front once this trial is in:
    ``hypervolume``, ``size``, and ``spread`` and ``igd_plus`` where there are such (``evomerge.fronts.Quality``).
    """

    number: int
    genome: dict[str, Value]
    objectives: dict[str, float] | None
    recipe_hash: str
    error: str | None = None
    seconds: float = 0.0
    merge_seconds: float = 0.0
    forward_seconds: float = 0.0
    cached: bool = False
    worker: str = ""
    device: str = ""
    batch_size: int = 0
    standard_errors: dict[str, float] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    own: dict[str, list[float]] = field(default_factory=dict)
    truncated: dict[str, float] = field(default_factory=dict)
    unextracted: dict[str, float] = field(default_factory=dict)
    front: dict[str, float] = field(default_factory=dict)
    started: datetime | None = None
    finished: datetime | None = None

    @property
    def alone(self) -> tuple[dict[str, float] | None, dict[str, float]]:
        """The objectives and their standard errors by the trial's own responses, before smoothing."""
        if self.objectives is None or not self.own:
            return self.objectives, self.standard_errors
        own = {name: tuple(self.own.get(name, (value, 0.0))) for name, value in self.objectives.items()}
        return {name: value for name, (value, _) in own.items()}, {name: error for name, (_, error) in own.items()}

    @property
    def failed(self) -> bool:
        """Whether the trial has no objectives."""
        return self.objectives is None


class Journal:
    """The trials and facts of one run.

    Args:
        study: the Optuna study that holds them.
        path: the journal file.
        objectives: what the trials are scored on; their order is the order of the study's values.
    """

    def __init__(self, study: optuna.Study, path: Path, objectives: Sequence[ObjectiveSpec]) -> None:
        self._study, self.path, self.objectives = study, path, tuple(objectives)

    @classmethod
    def write(cls, path: Path, name: str, objectives: Sequence[ObjectiveSpec]) -> Journal:
        """Open the journal at ``path`` for appending, making it if need be; the caller holds the run's lock.

        Cuts off a torn last line, and removes the lock that a killed writer left.

        Raises:
            RunError: it cannot be read or written.
        """
        with _readable(path):
            _repair(path)
        directions = [objective.direction for objective in objectives]
        with _readable(path):
            storage = _storage(path)
            # `load_if_exists` would add a line to the journal at each resume.
            known = optuna.get_all_study_names(storage)
            study = (
                optuna.load_study(study_name=known[0], storage=storage)
                if known
                else optuna.create_study(study_name=name, storage=storage, directions=directions)
            )
        return cls(study, path, objectives)

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Open the journal of a run that may be going on, for reading.

        Raises:
            RunError: there is none yet, or it cannot be read.
        """
        if not path.exists():
            raise RunError(f"{path} does not exist: the run was stopped before its first trial; resume it")
        with _readable(path):
            storage = _storage(path)
            names = optuna.get_all_study_names(storage)
            study = optuna.load_study(study_name=names[0], storage=storage) if names else None
            attributes = study.user_attrs if study else {}
        objectives = attributes.get(PREFIX + "objectives")
        # The identity is noted last: a journal that holds it holds every fact.
        if study is None or objectives is None or PREFIX + "identity" not in attributes:
            raise RunError(f"{path} holds nothing yet: the run was stopped before its first trial; resume it")
        return cls(study, path, [ObjectiveSpec(o["name"], o["direction"], o["weight"]) for o in objectives])

    def facts(self) -> dict[str, Any]:
        """Return what ``note`` recorded."""
        recorded = self._study.user_attrs
        return {key.removeprefix(PREFIX): value for key, value in recorded.items() if key.startswith(PREFIX)}

    def note(self, key: str, value: Any) -> None:
        """Record a JSON-able fact about the run."""
        self._study.set_user_attr(PREFIX + key, value)

    def trials(self) -> list[Trial]:
        """Return the finished trials in ask order."""
        return [self._read(frozen) for frozen in self._study.get_trials(deepcopy=False)]

    def append(self, trial: Trial, genes: Sequence[Gene]) -> None:
        """Add one finished trial, durably (one line, flushed to the disk).

        Raises:
            RunError: the line could not be written, for instance because the disk is full.
        """
        attributes = {key: value for key, value in asdict(trial).items() if key not in _NOT_ATTRIBUTES}
        frozen = create_trial(
            state=TrialState.FAIL if trial.failed else TrialState.COMPLETE,
            values=None if trial.objectives is None else [trial.objectives[o.name] for o in self.objectives],
            params=dict(trial.genome),
            distributions={gene.name: distribution(gene) for gene in genes},
            user_attrs={PREFIX + key: value for key, value in attributes.items()},
        )
        frozen.datetime_start, frozen.datetime_complete = trial.started, trial.finished
        try:
            self._study.add_trial(frozen)
        except OSError as error:
            raise RunError(f"cannot write to {self.path}: {error}; free some space, then resume the run") from error

    def _read(self, frozen: FrozenTrial) -> Trial:
        attributes = {
            key.removeprefix(PREFIX): value for key, value in frozen.user_attrs.items() if key.startswith(PREFIX)
        }
        failed = frozen.state != TrialState.COMPLETE
        return Trial(
            number=frozen.number,
            genome=dict(frozen.params),
            objectives=None if failed else {o.name: v for o, v in zip(self.objectives, frozen.values, strict=True)},
            started=frozen.datetime_start,
            finished=frozen.datetime_complete,
            **attributes,
        )


_NOT_ATTRIBUTES = ("number", "genome", "objectives", "started", "finished")


def distribution(gene: Gene) -> optuna.distributions.BaseDistribution:
    """Return the Optuna distribution of a gene."""
    match gene:
        case FloatGene():
            return optuna.distributions.FloatDistribution(gene.low, gene.high)
        case IntGene():
            return optuna.distributions.IntDistribution(gene.low, gene.high)
        case ChoiceGene():
            return optuna.distributions.CategoricalDistribution(gene.choices)


def _storage(path: Path) -> JournalStorage:
    optuna.logging.get_logger("optuna").setLevel(logging.WARNING)
    return JournalStorage(JournalFileBackend(str(path)))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (json.JSONDecodeError, KeyError, ValueError) as error:
        raise RunError(
            f"{path} is not a readable journal ({error}); restore it from a copy, or start a new run"
        ) from error
    except OSError as error:
        raise RunError(f"cannot open the journal {path}: {error}") from error


def _repair(path: Path) -> None:
    """Cut a torn last line and remove the lock of a writer that was killed; the caller holds the run's lock."""
    lock = path.with_name(path.name + ".lock")
    if lock.is_symlink() or lock.exists():
        lock.unlink()
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            file.flush()
            os.fsync(file.fileno())
