"""Records of trials are written as Optuna writes them, without reading the journal, and read as Optuna reads them."""

from datetime import datetime
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from evomerge.experiments.journal_records import JournalRecords, TrialRecord

DISTRIBUTIONS = {
    "w": FloatDistribution(-1.0, 1.0),
    "n": IntDistribution(1, 9),
    "c": CategoricalDistribution(("a", "b")),
}
STARTED, FINISHED = datetime(2026, 1, 1, 0, 0, 0, 5), datetime(2026, 1, 1, 0, 1)


def record(number: int, values: list[float] | None) -> TrialRecord:
    params = {"w": 0.1 + number / 7, "n": 1 + number, "c": "ab"[number % 2]}
    return TrialRecord(params, values, {"hash": f"{number:x}", "items": {"t": 3}}, STARTED, FINISHED)


RECORDS = {
    1: [record(0, [1 / 3]), record(1, None), record(2, [-0.0])],
    2: [record(0, [1 / 3, 1e-17]), record(1, None), record(2, [2.0, 3.0])],
}


class Memory(optuna.storages.journal.BaseJournalBackend):
    """A journal in memory that counts how often it is read."""

    def __init__(self) -> None:
        self.logs: list[dict] = []
        self.reads = 0

    def read_logs(self, log_number_from):
        self.reads += 1
        return iter(self.logs[log_number_from:])

    def append_logs(self, logs):
        self.logs += logs


def written_by_optuna(backend, objectives: int) -> None:
    study = optuna.create_study(
        study_name="run", storage=JournalStorage(backend), directions=["maximize", "minimize"][:objectives]
    )
    study.set_user_attr("fact", [1, 2])
    for each in RECORDS[objectives]:
        frozen = create_trial(
            state=TrialState.FAIL if each.values is None else TrialState.COMPLETE,
            values=each.values,
            params=each.params,
            distributions=DISTRIBUTIONS,
            user_attrs=dict(each.attributes),
        )
        frozen.datetime_start, frozen.datetime_complete = STARTED, FINISHED
        study.add_trial(frozen)


def written_by_us(backend, objectives: int) -> JournalRecords:
    records = JournalRecords(backend)
    records.create("run", ["maximize", "minimize"][:objectives])
    records.set_attribute("fact", [1, 2])
    for each in RECORDS[objectives]:
        records.append(each, DISTRIBUTIONS)
    return records


@pytest.mark.parametrize("objectives", [1, 2])
def test_the_lines_are_those_of_optuna_but_for_the_writers_name(objectives, tmp_path: Path) -> None:
    ours, optunas = tmp_path / "ours.log", tmp_path / "optunas.log"
    written_by_us(JournalFileBackend(str(ours)), objectives)
    written_by_optuna(JournalFileBackend(str(optunas)), objectives)

    def lines(path):
        return [
            {key: value for key, value in each.items() if key != "worker_id"}
            for each in JournalFileBackend(str(path)).read_logs(0)
        ]

    assert lines(ours) == lines(optunas)
    assert [list(each) for each in lines(ours)] == [list(each) for each in lines(optunas)]


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("write", [written_by_us, written_by_optuna])
def test_what_was_written_is_read(write, objectives) -> None:
    backend = Memory()
    write(backend, objectives)
    records = JournalRecords(backend)
    assert records.refresh() == RECORDS[objectives]
    assert (records.name, records.attributes) == ("run", {"fact": [1, 2]})
    assert records.refresh() == []


def test_appending_never_reads() -> None:
    backend = Memory()
    records = written_by_us(backend, 2)
    assert backend.reads == 0
    assert records.refresh() == RECORDS[2]
    assert backend.reads == 1


def test_only_what_is_new_is_read() -> None:
    backend = Memory()
    reader, writer = JournalRecords(backend), written_by_us(backend, 2)
    assert reader.refresh() == RECORDS[2]
    writer.append(record(7, [1.0, 2.0]), DISTRIBUTIONS)
    assert reader.refresh() == [record(7, [1.0, 2.0])]


def test_trials_share_the_names_of_their_params() -> None:
    backend = Memory()
    written_by_us(backend, 2)
    for log in backend.logs:
        log.update(
            {key: {f"{name[:1]}{name[1:]}": each for name, each in log[key].items()} for key in log if key == "params"}
        )
    first, second, _ = JournalRecords(backend).refresh()
    assert all(one is other for one, other in zip(first.params, second.params, strict=True))


def test_other_distributions_are_written_and_read_with_their_trials() -> None:
    backend = Memory()
    records = written_by_us(backend, 2)
    wider = {**DISTRIBUTIONS, "c": CategoricalDistribution(("b", "c", "a"))}
    added = TrialRecord({"w": 0.5, "n": 3, "c": "c"}, [0.0, 0.0], {}, STARTED, FINISHED)
    records.append(added, wider)
    records.append(record(1, [1.0, 2.0]), DISTRIBUTIONS)
    assert JournalRecords(backend).refresh()[3:] == [added, record(1, [1.0, 2.0])]


def test_what_dashboards_note_is_passed_over() -> None:
    backend = Memory()
    written_by_us(backend, 2)
    storage = JournalStorage(backend)
    storage.set_study_system_attr(0, "dashboard:note", "mine")
    optuna.create_study(study_name="another", storage=storage).set_user_attr("fact", 3)
    records = JournalRecords(backend)
    assert records.refresh() == RECORDS[2]
    assert (records.name, records.attributes) == ("run", {"fact": [1, 2]})


def test_a_trial_that_is_not_finished_is_refused() -> None:
    backend = Memory()
    written_by_us(backend, 2)
    optuna.load_study(study_name="run", storage=JournalStorage(backend)).ask()
    with pytest.raises(ValueError, match="not finished"):
        JournalRecords(backend).refresh()


def test_a_deleted_study_is_refused() -> None:
    backend = Memory()
    written_by_us(backend, 2)
    optuna.delete_study(study_name="run", storage=JournalStorage(backend))
    with pytest.raises(ValueError, match="deleted"):
        JournalRecords(backend).refresh()
