"""Whole runs on tiny models: real Ray workers, real merges, real faults."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.errors import ConfigError, RunError, WorkerError
from evomerge.experiments.front_file import read_front
from evomerge.experiments.journal import Journal, Trial
from evomerge.experiments.run import resume, start
from evomerge.experiments.schema import read_experiment
from evomerge.experiments.summarise import summarise
from evomerge.testing.stored import kill_after, stored_responses
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """One Ray for the module; the workers are each run's own."""
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_experiment(tmp_path_factory.mktemp("tiny")).parent


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted run."""
    out = folder / "whole"
    assert start(read_experiment(str(folder / "experiment.yaml")), out, SilentDisplay()).finished
    return out


def trials(run: Path) -> list[tuple[int, dict[str, float], dict[str, float] | None]]:
    return [(t.number, t.genome, t.objectives) for t in Journal.read(run / "journal.log").trials()]


def run_file(folder: Path, out: Path, *overrides: str) -> SilentDisplay:
    display = SilentDisplay()
    start(read_experiment(str(folder / "experiment.yaml"), overrides), out, display)
    return display


def with_function(name: str) -> str:
    return f"fitness.objectives=[{{function: './score.py:{name}', name: only}}]"


def test_a_run_leaves_everything_that_its_folder_promises(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {"experiment.yaml", "journal.log", "front.jsonl", "responses", "confirmation.json"} <= names
    assert len(trials(whole)) == 18
    front = read_front(whole / "front.jsonl")
    assert all(set(entry) == {"trial", "genome", "objectives", "confirmed", "recipe"} for entry in front)
    assert all(entry["confirmed"]["near"]["items"] > 0 for entry in front)


def test_the_reference_models_are_scored(whole: Path) -> None:
    summary = summarise(whole)
    assert [(row.name, row.kind) for row in summary.references] == [
        ("base", "base"),
        ("a", "parent"),
        ("b", "parent"),
        ("c", "parent"),
        ("uniform", "uniform"),
    ]
    assert summary.status == "finished"
    assert summary.winner is not None
    assert [c.against for c in summary.comparisons][1:] == ["base", "uniform"]


def test_a_second_run_of_the_same_file_is_the_same(folder: Path, whole: Path) -> None:
    run_file(folder, folder / "again", "workers.count=1", "workers.threads=1")
    assert trials(folder / "again") == trials(whole)
    assert (folder / "again" / "front.jsonl").read_bytes() == (whole / "front.jsonl").read_bytes()


def test_a_run_cut_at_any_trial_resumes_to_the_same_front(folder: Path, whole: Path) -> None:
    """As after a kill: the journal ends early, the last evaluations are not on disk."""
    lines = (whole / "journal.log").read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"op_code":4' in line)
    for kept in (0, 7, 17):
        out = folder / f"cut{kept}"
        out.mkdir()
        (out / "experiment.yaml").write_bytes((whole / "experiment.yaml").read_bytes())
        (out / "journal.log").write_bytes(b"".join(lines[: first + kept]) + lines[first + kept][:40])
        assert resume(out, SilentDisplay()).finished
        assert trials(out) == trials(whole)
        assert (out / "front.jsonl").read_bytes() == (whole / "front.jsonl").read_bytes()


def test_resuming_a_finished_run_starts_no_worker_and_changes_nothing(whole: Path) -> None:
    before = (whole / "front.jsonl").read_bytes(), (whole / "journal.log").read_bytes()
    display = SilentDisplay()
    assert resume(whole, display).finished
    assert not any("starting" in note for note in display.notes)
    assert ((whole / "front.jsonl").read_bytes(), (whole / "journal.log").read_bytes()) == before


def test_extending_a_run_equals_a_longer_run(folder: Path) -> None:
    run_file(folder, folder / "short", "budget.trials=10")
    ended = resume(folder / "short", SilentDisplay(), extend_trials=8)
    assert (ended.trials, ended.budget) == (18, 18)
    run_file(folder, folder / "long")
    assert trials(folder / "short") == trials(folder / "long")
    assert summarise(folder / "short").budget == 18


def test_a_dead_worker_is_replaced_and_its_trial_runs_again(folder: Path) -> None:
    for name in ("calls", "died"):
        (folder / name).unlink(missing_ok=True)
    display = run_file(folder, folder / "deaths", with_function("dies_once"), "budget.trials=10", "searcher=random")
    assert sum("a worker died" in note for note in display.notes) == 1
    assert [t.failed for t in Journal.read(folder / "deaths" / "journal.log").trials()] == [False] * 10


def test_a_recipe_that_always_kills_its_worker_is_recorded_as_failed(folder: Path) -> None:
    (folder / "calls").unlink(missing_ok=True)
    with pytest.raises(WorkerError, match=r"all 2 trials failed(.|\n)*worker's process died in each of 2 tries"):
        run_file(
            folder,
            folder / "poison",
            with_function("always_dies"),
            "budget.trials=2",
            "workers.retries=1",
            "workers.count=1",
            "searcher=random",
        )


def test_a_failing_trial_is_recorded_with_its_traceback_and_the_search_goes_on(folder: Path) -> None:
    run_file(folder, folder / "picky", with_function("picky"), "budget.trials=16", "searcher=random")
    recorded = Journal.read(folder / "picky" / "journal.log").trials()
    failed = [trial for trial in recorded if trial.failed]
    assert len(recorded) == 16
    assert 0 < len(failed) < 16
    assert all("this merge is not to my taste" in str(trial.error) for trial in failed)
    assert "Traceback" in str(failed[0].error)


def test_reference_models_that_fail_stop_the_run_in_words(folder: Path) -> None:
    with pytest.raises(WorkerError, match=r"base could not be evaluated(.|\n)*this function always fails"):
        run_file(folder, folder / "failing", with_function("fails"), "budget.trials=4")


def test_the_same_recipe_is_evaluated_once(folder: Path) -> None:
    run_file(folder, folder / "once", "budget.trials=12", "searcher={kind: nsga2, population: 4, seed: 2}")
    recorded = Journal.read(folder / "once" / "journal.log").trials()
    hashes = [trial.recipe_hash for trial in recorded]
    assert set(hashes) <= set(stored_responses(folder / "once"))
    for trial in recorded:
        assert trial.cached == (trial.recipe_hash in hashes[: trial.number])


def test_changed_weights_are_refused_on_resume(tmp_path: Path) -> None:
    tiny_experiment(tmp_path)
    run_file(tmp_path, tmp_path / "run", "budget.trials=2")
    from evomerge.testing.tiny_models import tiny_family

    tiny_family(tmp_path / "other", seed=7)
    weights = "model.safetensors"
    (tmp_path / "models" / "b" / weights).write_bytes((tmp_path / "other" / "b" / weights).read_bytes())
    with pytest.raises(RunError, match=r"changed since this run began: the weights of .*b"):
        resume(tmp_path / "run", SilentDisplay(), extend_trials=2)


def test_a_run_that_cannot_begin_leaves_no_folder_and_can_be_started_again(folder: Path) -> None:
    with pytest.raises(WorkerError, match=r"workers\.count is 99"):
        run_file(folder, folder / "greedy", "workers.count=99")
    assert not (folder / "greedy").exists()


def test_a_function_without_items_claims_no_interval(folder: Path) -> None:
    from evomerge.experiments.export_run import describe
    from evomerge.export.card import render_card
    from evomerge.reports.html import render_report

    out = folder / "single"
    run_file(folder, out, with_function("whole"), "budget.trials=3", "searcher=random")
    assert "Infinity" not in (out / "front.jsonl").read_text()
    summary = summarise(out)
    assert not any(comparison.beats or comparison.loses for comparison in summary.comparisons)
    assert "inf" not in render_report(summary).split("<script")[0]
    card = render_card(describe(out, int(summary.pick or 0))[2])
    assert "not held out" in card
    assert "inf]" not in card


def test_swapped_objectives_are_refused_on_resume(folder: Path, whole: Path) -> None:
    out = folder / "swapped"
    shutil.copytree(whole, out)
    text = (out / "experiment.yaml").read_text()
    (out / "experiment.yaml").write_text(text.replace("name: near", "name: x").replace("name: far", "name: near"))
    with pytest.raises(RunError, match="changed since this run began: the objectives"):
        resume(out, SilentDisplay())


def test_an_unfinished_run_cannot_be_extended(folder: Path, whole: Path) -> None:
    out = folder / "unfinished"
    shutil.copytree(whole, out)
    text = (out / "experiment.yaml").read_text()
    (out / "experiment.yaml").write_text(text.replace("trials: 18", "trials: 20"))
    with pytest.raises(RunError, match=r"has 18 of 20 trials: finish it first"):
        resume(out, SilentDisplay(), extend_trials=5)


def test_a_base_of_narrower_dtype_exports_as_it_was_searched(tmp_path: Path) -> None:
    """The base in bfloat16, the parents in float32: a usual state of affairs."""
    from safetensors.torch import load_file, save_file

    from evomerge.experiments.export_run import choose, export

    tiny_experiment(tmp_path)
    path = tmp_path / "models" / "base" / "model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    run_file(tmp_path, tmp_path / "run", "budget.trials=4")
    number = choose(tmp_path / "run", trial=None, pick=None)
    assert export(tmp_path / "run", None, number).responses_checked > 0


def test_a_refused_experiment_leaves_no_folder(folder: Path) -> None:
    experiment = read_experiment(str(folder / "experiment.yaml"), ["parents.d=./models/nowhere"])
    with pytest.raises(ConfigError, match="nowhere"):
        start(experiment, folder / "refused", SilentDisplay())
    assert not (folder / "refused").exists()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "evomerge", *arguments]


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_it_never_was(folder: Path, whole: Path) -> None:
    """SIGKILL of the driver after random numbers of evaluations, through the command line."""
    out, experiment = folder / "killed", str(folder / "experiment.yaml")
    moments = random.Random(0)
    for _ in range(5):
        begun = (out / "experiment.yaml").exists()
        arguments = ("resume", str(out)) if begun else ("run", experiment, "--out", str(out))
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kill_after(process, out, moments.randint(1, 6), moments.uniform(0, 0.5))
    subprocess.run(command("resume", str(out)), check=True, capture_output=True)
    fronts = [
        subprocess.run(command("front", str(run), "--json"), check=True, capture_output=True).stdout
        for run in (out, whole)
    ]
    assert fronts[0] == fronts[1]
    assert len(json.loads(fronts[0])) > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_trials_in_flight_and_says_how_to_go_on(folder: Path, number: int) -> None:
    out = folder / f"interrupted{number}"
    arguments = command("run", str(folder / "experiment.yaml"), "--out", str(out), "--set", "budget.trials=5000")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (out / "front.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.2)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after the trials in flight" in output
    assert f"go on with: evomerge resume {out}" in output
    assert len(trials(out)) > 0


def test_trials_are_told_in_ask_order(folder: Path, whole: Path) -> None:
    recorded: list[Trial] = Journal.read(whole / "journal.log").trials()
    assert [trial.number for trial in recorded] == list(range(18))
