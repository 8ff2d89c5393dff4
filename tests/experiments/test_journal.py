"""The journal: what goes in comes out, whatever instant the writer was killed at."""

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import optuna
import pytest

from evomerge.errors import RunError
from evomerge.experiments.journal import PREFIX, Journal, Trial
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, IntGene
from evomerge.searchers import ObjectiveSpec

GENES = (FloatGene("w", -1.0, 1.0, 0.0), IntGene("n", 1, 9, 1), ChoiceGene("c", ("a", "b"), "a"))
OBJECTIVES = (ObjectiveSpec("accuracy", "maximize"), ObjectiveSpec("loss", "minimize", 2.0))
FACTS = [{"name": o.name, "direction": o.direction, "weight": o.weight, "task": "t", "metric": "m"} for o in OBJECTIVES]


def trial(number: int, failed: bool = False) -> Trial:
    return Trial(
        number=number,
        genome={"w": 0.1 + 0.2 * number / 3, "n": 1 + number % 9, "c": "ab"[number % 2]},
        objectives=None if failed else {"accuracy": 1 / (3 + number), "loss": 1e-17 * number},
        recipe_hash=f"{number:016x}",
        error="Traceback: ValueError: no" if failed else None,
        seconds=1.5,
        truncated={"t": 0.25},
        device="cpu (1 threads)",
        started=datetime(2026, 1, 1, 0, 0, number),
        finished=datetime(2026, 1, 1, 0, 1, number),
    )


def journal(path: Path) -> Journal:
    opened = Journal.write(path, "run", OBJECTIVES)
    opened.note("objectives", FACTS)
    opened.note("identity", {})
    return opened


def test_trials_come_out_exactly_as_they_went_in(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    opened = journal(path)
    trials = [trial(n, failed=n == 2) for n in range(5)]
    for each in trials:
        opened.append(each, GENES)
    assert Journal.read(path).trials() == trials
    assert list(Journal.read(path).trials()[0].genome) == ["w", "n", "c"]
    assert Journal.read(path).objectives == OBJECTIVES


def test_facts_are_kept(tmp_path: Path) -> None:
    opened = journal(tmp_path / "journal.log")
    opened.note("in_flight", 8)
    assert Journal.read(tmp_path / "journal.log").facts() == {"objectives": FACTS, "identity": {}, "in_flight": 8}


def test_one_line_a_trial(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    opened = journal(path)
    before = path.read_bytes().count(b"\n")
    opened.append(trial(0), GENES)
    assert path.read_bytes().count(b"\n") == before + 1


def test_a_journal_cut_at_any_byte_loses_at_most_the_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    opened = journal(path)
    for number in range(3):
        opened.append(trial(number), GENES)
    whole = path.read_bytes()
    start = whole.index(b"\n", whole.rindex(b'"template')) - 1 if b'"template' in whole else len(whole) - 200
    for cut in range(max(start - 150, 0), len(whole), 7):
        copy = tmp_path / f"{cut}.log"
        copy.write_bytes(whole[:cut])
        reopened = Journal.write(copy, "run", OBJECTIVES)
        kept = reopened.trials()
        assert kept == [trial(n) for n in range(len(kept))]
        assert len(kept) == 2
        reopened.append(trial(2), GENES)
        assert Journal.read(copy).trials() == [trial(n) for n in range(3)]


def test_the_lock_of_a_killed_writer_does_not_delay_the_next(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    journal(path)
    os.symlink(path, f"{path}.lock")
    reopened = Journal.write(path, "run", OBJECTIVES)
    reopened.append(trial(0), GENES)
    assert len(reopened.trials()) == 1


def test_optuna_reads_it_as_a_study(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    opened = journal(path)
    for number in range(4):
        opened.append(trial(number, failed=number == 1), GENES)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    study = optuna.load_study(study_name="run", storage=storage)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [t.number for t in study.trials] == [0, 1, 2, 3]
    assert study.trials[0].values == [1 / 3, 0.0]
    assert study.trials[1].state == optuna.trial.TrialState.FAIL


def test_reading_a_run_that_has_not_begun_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="stopped before its first trial; resume it"):
        Journal.read(tmp_path / "journal.log")
    Journal.write(tmp_path / "journal.log", "run", OBJECTIVES)
    with pytest.raises(RunError, match="holds nothing yet"):
        Journal.read(tmp_path / "journal.log")


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_text("not json\nat all\n")
    with pytest.raises(RunError, match="not a readable journal"):
        Journal.write(path, "run", OBJECTIVES)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.log"
    opened = journal(path)
    backend = opened._backend
    monkeypatch.setattr(backend, "_file_path", "/dev/full")
    with pytest.raises(RunError, match="No space left on device; free some space, then resume"):
        opened.append(trial(0), GENES)


def test_the_quality_of_the_front_is_kept_and_old_journals_have_none(tmp_path: Path) -> None:
    path, quality = tmp_path / "journal.log", {"hypervolume": 0.25, "size": 3, "igd_plus": 1 / 3}
    journal(path).append(replace(trial(0), front=quality), GENES)
    assert Journal.read(path).trials()[0].front == quality
    text = path.read_text()
    old = text.replace(f'"{PREFIX}front"', '"another:front"')
    assert old != text
    path.write_text(old)
    assert Journal.read(path).trials() == [trial(0)]
