"""What of a run is logged, over sessions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.experiments.journal import Journal, Trial
from evomerge.experiments.run import resume, start
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.run_loggers import numbers_of, open_loggers
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.loggers import LOGGERS, Ending, LoggerEntry, Step, ToolRun
from evomerge.reports.progress import WorkerRow
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment

TRIAL = Trial(
    number=3,
    genome={"a.weight": 0.25, "layers": 4, "method": "ties"},
    objectives={"acc": 0.5, "loss": float("inf")},
    recipe_hash="f",
    standard_errors={"acc": 0.1},
    front={"hypervolume": 0.3, "size": 2},
    seconds=4.0,
    merge_seconds=1.0,
    forward_seconds=2.0,
    queue_seconds=0.5,
    driver_seconds=0.25,
    finished=datetime(2026, 1, 2),
)


class Kept:
    """A tool that keeps what it is told."""

    runs: list[ToolRun]
    steps: list[Step]
    endings: list[Ending]
    next_step = 0

    def __init__(self, run: ToolRun) -> None:
        self.runs.append(run)

    def log(self, step: Step) -> None:
        self.steps.append(step)

    def close(self, ending: Ending) -> None:
        self.endings.append(ending)


@pytest.fixture
def kept() -> Iterator[type[Kept]]:
    Kept.runs, Kept.steps, Kept.endings = [], [], []
    LOGGERS.add("kept", LoggerEntry("Kept", "json", Kept), origin="test")
    yield Kept
    del LOGGERS._entries["kept"]


class Facts:
    """A journal's facts."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def facts(self) -> dict[str, Any]:
        return self.kept

    def note(self, key: str, value: Any) -> None:
        self.kept[key] = value


def experiment_of(folder: Path, *overrides: str) -> ExperimentConfig:
    return read_experiment(str(tiny_experiment(folder)), overrides)


def one_session(folder: Path, experiment: ExperimentConfig, journal: Facts, *numbers: int, error: Any = None) -> None:
    with open_loggers(RunFolder(folder), experiment, journal, lambda text: None) as loggers:  # type: ignore[arg-type]
        loggers.begin([{"name": "a", "objectives": {"acc": 0.5}}])
        for number in numbers:
            loggers.told(SimpleNamespace(**{**fields(TRIAL), "number": number}), 1)  # type: ignore[arg-type]
        if error:
            raise error


def fields(trial: Trial) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in Trial.__dataclass_fields__} | {"failed": trial.failed}


def test_a_trial_is_its_numbers_by_name() -> None:
    assert numbers_of(TRIAL, 2) == {
        "objective/acc": 0.5,
        "standard_error/acc": 0.1,
        "front/hypervolume": 0.3,
        "front/size": 2.0,
        "genome/a.weight": 0.25,
        "genome/layers": 4.0,
        "seconds/trial": 4.0,
        "seconds/merge": 1.0,
        "seconds/forward": 2.0,
        "seconds/queue": 0.5,
        "seconds/driver": 0.25,
        "failures": 2.0,
        "failed": 0.0,
    }


def test_every_session_goes_on_with_the_same_run_of_the_tool(kept: type[Kept], tmp_path: Path) -> None:
    experiment, journal = experiment_of(tmp_path, "loggers=[kept]"), Facts()
    one_session(tmp_path, experiment, journal, 0, 1)
    one_session(tmp_path, experiment, journal, 2)
    one_session(tmp_path, experiment, Facts(), 0)
    assert kept.runs[0].id == kept.runs[1].id != kept.runs[2].id
    assert kept.runs[0].id.startswith("tiny-")
    assert [step.number for step in kept.steps] == [0, 1, 2, 0]
    assert kept.steps[0].time == datetime(2026, 1, 2).timestamp()
    assert kept.runs[0].config["budget"] == {"trials": 18}
    assert kept.runs[0].config["references"] == {"a": {"acc": 0.5}}


@pytest.mark.parametrize(("error", "said"), [(None, "interrupted"), (ValueError(), "failed")])
def test_the_tool_hears_how_a_session_ended(
    kept: type[Kept], tmp_path: Path, error: Exception | None, said: str
) -> None:
    try:
        one_session(tmp_path, experiment_of(tmp_path, "loggers=[kept]"), Facts(), 0, error=error)
    except ValueError:
        assert error
    assert [ending.outcome for ending in kept.endings] == [said]


def test_no_secret_is_logged(kept: type[Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "sesame-open")
    experiment = experiment_of(tmp_path, "loggers=[kept]", "also_score={x: sesame-open}")
    one_session(tmp_path, experiment, Facts(), 0)
    assert "sesame" not in json.dumps(kept.runs[0].config)
    assert kept.runs[0].config["also_score"] == {"x": "***"}


def test_without_loggers_nothing_is_noted_or_begun(tmp_path: Path) -> None:
    journal = Facts()
    one_session(tmp_path, experiment_of(tmp_path), journal, 0, 1)
    assert journal.kept == {}


def test_telling_costs_the_driver_microseconds(kept: type[Kept], tmp_path: Path) -> None:
    with open_loggers(RunFolder(tmp_path), experiment_of(tmp_path, "loggers=[kept]"), Facts(), print) as loggers:  # type: ignore[arg-type]
        loggers.begin([])
        began = time.thread_time()
        for _ in range(1000):
            loggers.told(TRIAL, 0)
        spent = time.thread_time() - began
    assert spent < 0.2, "0.2 ms a trial at the very most"


def test_an_unknown_logger_in_the_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tensorboard"):
        experiment_of(tmp_path, "loggers=[tensorbord]")


class Watching(SilentDisplay):
    """Keeps the workers it is shown, and what `evomerge status` would read."""

    def __init__(self, news: Path) -> None:
        super().__init__()
        self.news, self.rows, self.seen = news, [], False  # type: ignore[var-annotated]

    def workers(self, rows: Sequence[WorkerRow]) -> None:  # type: ignore[override]
        self.rows.extend(rows)
        self.seen |= self.news.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_logger_added_later_gets_every_trial_and_the_report(tmp_path: Path) -> None:
    """A whole run: two sessions, TensorBoard from the second on, read back and compared with the journal."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'evomerge[tensorboard]'")
    import ray
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    display = Watching(out / "workers.json")
    experiment = experiment_of(tmp_path, "budget.trials=6", "workers.count=1", "workers.threads=1")
    began = time.monotonic()
    try:
        start(experiment, out, display)
        assert resume(out, display, extend_trials=4, loggers=["tensorboard"]).finished
    finally:
        ray.shutdown()
    whole = time.monotonic() - began
    trials = Journal.read(out / "journal.log").trials()
    found = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    for name in ("near", "far"):
        logged = [(event.step, event.value) for event in found.Scalars(f"objective/{name}")]
        assert logged == [(t.number, pytest.approx((t.objectives or {})[name])) for t in trials]
    assert len(trials) == 10
    assert "report.html" in str(found.Tensors("winner/text_summary"))
    assert "loggers: [tensorboard]" in (out / "experiment.yaml").read_text()

    assert {row.work for row in display.rows if row.phase == "busy"} & {f"trial {k}" for k in range(10)}
    assert display.seen
    assert not (out / "workers.json").exists()
    assert all(trial.workers == 1 and trial.driver_seconds > 0 for trial in trials)
    assert 0 < sum(trial.driver_seconds + trial.wait_seconds for trial in trials) < whole
    assert sum(trial.wait_seconds for trial in trials) > 0.5 * sum(t.seconds for t in trials if not t.cached)
