"""The journal: the run's append-only log of trials, an Optuna study on ``JournalStorage``.

One durable line a finished trial, appended in ask order, so that Optuna's trial numbers are ours and any Optuna tool
(optuna-dashboard, ``optuna.visualization``) reads a run as it is. The journal is the run's only state: searchers and
fronts are rebuilt from it. It is the file ``journal.log``, or lies on a server that this file then names (``journals/``
holds what differs). A line torn by a kill is cut off when the journal is next opened for writing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from evomerge.errors import RunError
from evomerge.experiments.journal_records import JournalRecords, TrialRecord
from evomerge.experiments.journals.address import new_address, read_address, write_address
from evomerge.experiments.journals.file import FileBackend, repair
from evomerge.experiments.journals.server import ServerBackend, server_backend
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, Gene, IntGene, Value
from evomerge.searchers import ObjectiveSpec

PREFIX = "evomerge:"


class NotBegunError(RunError):
    """There is no journal yet, or it holds no trial and not all facts."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One proposed and evaluated genome. ``objectives`` is None when the trial failed; times are in seconds.

    ``standard_errors`` are those of estimated objectives, ``own`` their values and standard errors before smoothing;
    ``items`` tells how many of each task were asked. ``front`` is the quality of the run's front once this trial is in:
    ``hypervolume``, ``size``, and ``spread`` and ``igd_plus`` where there are such (``evomerge.fronts.Quality``).

    ``seconds`` are those of the worker, ``merge_seconds`` and ``forward_seconds`` parts of them; ``queue_seconds``
    passed between question and answer besides. Since the trial before, the driver was at work for ``driver_seconds``
    and waited for its ``workers`` for ``wait_seconds``: over all trials, this is the time that the search took.
    """

    number: int
    genome: dict[str, Value]
    objectives: dict[str, float] | None
    recipe_hash: str
    error: str | None = None
    seconds: float = 0.0
    merge_seconds: float = 0.0
    forward_seconds: float = 0.0
    queue_seconds: float = 0.0
    driver_seconds: float = 0.0
    wait_seconds: float = 0.0
    workers: int = 0
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
        backend: of the Optuna journal that holds them.
        path: the journal file.
        objectives: what the trials are scored on; their order is the order of the study's values. None: those that the
            journal names.

    Raises:
        RunError: it cannot be read.
    """

    def __init__(
        self, backend: BaseJournalBackend, path: Path, objectives: Sequence[ObjectiveSpec] | None = None
    ) -> None:
        self._backend, self.path = backend, path
        self._records = JournalRecords(backend)
        with _readable(path):
            self._found: list[TrialRecord] | None = self._records.refresh()
        if objectives is None:
            noted = self.facts().get("objectives", [])
            objectives = [ObjectiveSpec(o["name"], o["direction"], o["weight"]) for o in noted]
        self.objectives = tuple(objectives)
        self._genes: Sequence[Gene] = ()
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {}

    @classmethod
    def write(
        cls,
        path: Path,
        name: str,
        objectives: Sequence[ObjectiveSpec],
        *,
        url: str | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> Journal:
        """Open the journal at ``path`` for appending, making it if need be; the caller holds the run's lock.

        Cuts off a torn last line, and removes the lock that a killed writer left. A journal on a server is held there
        until it is closed.

        Args:
            path: of ``journal.log``.
            name: of the study.
            objectives: of the study.
            url: where a new journal is made if not in this file; one that exists stays where it is.
            note: told what the user should know: what was cut off, a server that is away.

        Raises:
            ConfigError: the server's driver is not installed.
            RunError: it cannot be read or written, or another driver holds it.
        """
        address = read_address(path)
        if address is None and url is not None and not (path.exists() and path.stat().st_size):
            address = new_address(url, name)
            write_address(path, address)
        server = None if address is None else server_backend(address, path.parent, is_writer=True, note=note)
        try:
            with _readable(path):
                if server is not None:
                    server.open()
                    for warning in server.warnings():
                        note(f"warning: {warning} (docs/journal.md)")
                elif cut := repair(path):
                    note(f"{path}: cut off {cut} bytes of a line that was not finished")
                journal = cls(server or FileBackend(path), path, objectives)
                if journal._records.name is None:
                    journal._records.create(name, [objective.direction for objective in objectives])
        except BaseException:
            if server is not None:
                server.close()
            raise
        return journal

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Open the journal of a run that may be going on, for reading.

        Raises:
            NotBegunError: there is none yet.
            RunError: it cannot be read.
        """
        if not path.exists():
            raise NotBegunError(f"{path} does not exist: the run was stopped before its first trial; resume it")
        with _readable(path):
            journal = cls(_reader(path), path)
        # The identity is noted last: a journal that holds it holds every fact.
        if not journal.objectives or "identity" not in journal.facts():
            raise NotBegunError(f"{path} holds nothing yet: the run was stopped before its first trial; resume it")
        return journal

    def close(self) -> None:
        """Let go of a journal on a server."""
        if isinstance(self._backend, ServerBackend):
            self._backend.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def facts(self) -> dict[str, Any]:
        """Return what ``note`` recorded until the journal was opened, or has since."""
        recorded = self._records.attributes
        return {key.removeprefix(PREFIX): value for key, value in recorded.items() if key.startswith(PREFIX)}

    def note(self, key: str, value: Any) -> None:
        """Record a JSON-able fact about the run."""
        self._records.set_attribute(PREFIX + key, value)

    def trials(self) -> list[Trial]:
        """Return the finished trials in ask order.

        They are read anew each time (but not what was read to open the journal), rather than kept: they may be many.

        Raises:
            RunError: they cannot be read.
        """
        with _readable(self.path):
            if self._found is None:
                found = JournalRecords(self._backend).refresh()
            else:
                found, self._found = self._found + self._records.refresh(), None
        return [self._read(number, record) for number, record in enumerate(found)]

    def append(self, trial: Trial, genes: Sequence[Gene]) -> None:
        """Add one finished trial, durably (one line on the disk, or one committed entry on a server).

        Raises:
            RunError: it could not be written, for instance because the disk is full.
        """
        if genes is not self._genes:
            self._genes, self._distributions = genes, {gene.name: distribution(gene) for gene in genes}
        values = None if trial.objectives is None else [trial.objectives[o.name] for o in self.objectives]
        attributes = {PREFIX + name: getattr(trial, name) for name in _ATTRIBUTES}
        record = TrialRecord(trial.genome, values, attributes, trial.started, trial.finished)
        self._records.append(record, self._distributions)

    def _read(self, number: int, record: TrialRecord) -> Trial:
        attributes = {
            key.removeprefix(PREFIX): value for key, value in record.attributes.items() if key.startswith(PREFIX)
        }
        values = None if record.values is None else zip(self.objectives, record.values, strict=True)
        return Trial(
            number=number,
            genome=record.params,
            objectives=None if values is None else {objective.name: value for objective, value in values},
            started=record.started,
            finished=record.finished,
            **attributes,
        )


_NOT_ATTRIBUTES = ("number", "genome", "objectives", "started", "finished")
_ATTRIBUTES = tuple(each.name for each in fields(Trial) if each.name not in _NOT_ATTRIBUTES)


def distribution(gene: Gene) -> optuna.distributions.BaseDistribution:
    """Return the Optuna distribution of a gene."""
    match gene:
        case FloatGene():
            return optuna.distributions.FloatDistribution(gene.low, gene.high)
        case IntGene():
            return optuna.distributions.IntDistribution(gene.low, gene.high)
        case ChoiceGene():
            return optuna.distributions.CategoricalDistribution(gene.choices)


def open_storage(path: Path) -> JournalStorage:
    """Return the journal of a run for Optuna's tools to read, wherever it lies.

    Args:
        path: of ``journal.log``.

    Raises:
        RunError: it cannot be read.
    """
    optuna.logging.get_logger("optuna").setLevel(logging.WARNING)
    with _readable(path):
        return JournalStorage(_reader(path))


def discard(path: Path) -> None:
    """Remove a journal, wherever it lies; what is on a server that does not answer stays there."""
    with suppress(RunError):
        address = read_address(path)
        if address is not None:
            with closing(server_backend(address, path.parent)) as server:
                server.open()
                server.remove()
    path.unlink(missing_ok=True)


def _reader(path: Path) -> BaseJournalBackend:
    address = read_address(path)
    return FileBackend(path) if address is None else server_backend(address, path.parent)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} is not a readable journal ({error}). What a crash left at its end is cut off by "
            "`evomerge resume`; other damage is not: restore it from a copy, or start a new run"
        ) from error
    except OSError as error:
        raise RunError(f"cannot open the journal {path}: {error}") from error
