"""The records of one Optuna study in a journal, written and read one by one.

Optuna's own ``JournalStorage`` keeps every trial in memory, each with distributions of its own (about 90 kB a trial of
200 genes), and reads back what it has just written. A run of 100,000 trials can afford neither. So its records go
straight to Optuna's journal backend, in the form in which ``Study.add_trial`` writes them: any Optuna tool reads them.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from evomerge.search_spaces.genes import Value

# Of Optuna's JournalOperation, which is not public; stored in every journal, so that they cannot change.
CREATE_STUDY = 0
DELETE_STUDY = 1
SET_STUDY_USER_ATTR = 2
CREATE_TRIAL = 4
STUDY = 0  # a journal of ours holds one study, its first


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial as a journal holds it.

    Attributes:
        params: gene to value.
        values: of the study's objectives, in their order; None if the trial failed.
        attributes: further JSON-able facts.
        started: local time, as ``finished``.
        finished: when the trial ended.
    """

    params: dict[str, Value]
    values: Sequence[float] | None
    attributes: Mapping[str, Any]
    started: datetime | None
    finished: datetime | None


class JournalRecords:
    """One study in a journal.

    Args:
        backend: of the journal.

    Attributes:
        name: of the study; None as long as there is none.
        attributes: of the study, as far as ``refresh`` has read and ``set_attribute`` has written them.
    """

    def __init__(self, backend: BaseJournalBackend) -> None:
        self.name: str | None = None
        self.attributes: dict[str, Any] = {}
        self._backend, self._read = backend, 0
        self._writer = f"{uuid.uuid4()}-{threading.get_ident()}"
        self._as_read: dict[str, str] = {}
        self._decoders: dict[str, tuple[str, BaseDistribution]] = {}
        self._given: Mapping[str, BaseDistribution] = {}
        self._encoded: dict[str, str] = {}

    def refresh(self) -> list[TrialRecord]:
        """Read what was written since the last call, and return the trials among it, in their order.

        Raises:
            KeyError, ValueError: it is no journal of finished trials.
            OSError: it cannot be read.
        """
        found = []
        for record in self._backend.read_logs(self._read):
            self._read += 1
            operation = record["op_code"]
            if operation == CREATE_STUDY:
                self.name = self.name or record["study_name"]
            elif record.get("study_id") != STUDY:
                continue  # of a single trial: Optuna changes no trial that is finished
            elif operation == SET_STUDY_USER_ATTR:
                self.attributes |= record["user_attr"]
            elif operation == CREATE_TRIAL:
                found.append(self._decoded(record))
            elif operation == DELETE_STUDY:
                raise ValueError("its study was deleted")
        return found

    def create(self, name: str, directions: Sequence[str]) -> None:
        """Add the study; ``directions`` are ``maximize`` or ``minimize``.

        Raises:
            OSError: it cannot be written.
        """
        self._append(CREATE_STUDY, study_name=name, directions=[StudyDirection[each.upper()] for each in directions])
        self.name = name

    def set_attribute(self, key: str, value: Any) -> None:
        """Record a JSON-able fact about the study.

        Raises:
            OSError: it cannot be written.
        """
        self._append(SET_STUDY_USER_ATTR, study_id=STUDY, user_attr={key: value})
        self.attributes[key] = value

    def append(self, trial: TrialRecord, distributions: Mapping[str, BaseDistribution]) -> None:
        """Add a trial; the next ``refresh`` returns it too.

        Args:
            trial: what to record.
            distributions: of its params. Giving the same object again saves time.

        Raises:
            OSError: it cannot be written.
        """
        if distributions is not self._given:
            self._given = distributions
            self._encoded = {name: distribution_to_json(each) for name, each in distributions.items()}
        several = trial.values is not None and len(trial.values) > 1
        optional = {} if trial.finished is None else {"datetime_complete": _stamp(trial.finished)}
        self._append(
            CREATE_TRIAL,
            study_id=STUDY,
            datetime_start=None if trial.started is None else _stamp(trial.started),
            state=TrialState.FAIL if trial.values is None else TrialState.COMPLETE,
            value=trial.values[0] if trial.values is not None and not several else None,
            values=list(trial.values) if trial.values is not None and several else None,
            **optional,
            distributions=self._encoded,
            params={name: distributions[name].to_internal_repr(value) for name, value in trial.params.items()},
            user_attrs=dict(trial.attributes),
            system_attrs={},
            intermediate_values={},
        )

    def _append(self, operation: int, **fields: Any) -> None:
        self._backend.append_logs([{"op_code": operation, "worker_id": self._writer, **fields}])

    def _decoded(self, record: Mapping[str, Any]) -> TrialRecord:
        """Return a trial; trials share the names of their params."""
        state = TrialState(record.get("state", TrialState.RUNNING))
        if not state.is_finished():
            raise ValueError("it holds a trial that is not finished, which evomerge never writes")
        if record["distributions"] != self._as_read:
            self._as_read = record["distributions"]
            self._decoders = {name: (name, json_to_distribution(text)) for name, text in self._as_read.items()}
        params = {}
        for written, number in record["params"].items():
            name, distribution = self._decoders[written]
            params[name] = distribution.to_external_repr(number)
        values = record["values"] if record["value"] is None else [record["value"]]
        return TrialRecord(
            params,
            values if state == TrialState.COMPLETE else None,
            record["user_attrs"],
            _time(record["datetime_start"]),
            _time(record.get("datetime_complete")),
        )


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _time(stamp: str | None) -> datetime | None:
    return None if stamp is None else datetime.fromisoformat(stamp).astimezone().replace(tzinfo=None)
