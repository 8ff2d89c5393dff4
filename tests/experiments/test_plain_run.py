"""Experiments on plain tensors: what the preflight refuses, and a whole run with its export."""

import json
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from evomerge.cli.merge import command as merge
from evomerge.errors import ConfigError
from evomerge.experiments.export_run import choose, export
from evomerge.experiments.journal import Journal
from evomerge.experiments.plan import _lengths
from evomerge.experiments.preflight import Prepared, prepare
from evomerge.experiments.run import resume, start
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.schema import read_experiment
from evomerge.testing.plain_models import plain_experiment
from evomerge.testing.tiny_experiment import SilentDisplay
from evomerge.testing.tiny_models import tiny_family


def checked(folder: Path, *overrides: str) -> Prepared:
    return prepare(read_experiment(str(folder / "experiment.yaml"), overrides))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plain_experiment(tmp_path)
    return tmp_path


def test_an_experiment_on_plain_tensors_passes_the_preflight(folder: Path) -> None:
    prepared = checked(folder)
    assert prepared.fitness.takes_batches
    assert prepared.parents[prepared.donor].is_plain
    assert prepared.dtype == "float32"
    assert _lengths(prepared) == {}


def test_what_asks_language_models_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"task 'arithmetic_ja' asks language models, and the parents are plain"):
        checked(folder, "fitness.objectives=[{task: arithmetic_ja}]")
    (folder / "chat.py").write_text("def chat(model, tokenizer): return 1.0\n")
    with pytest.raises(ConfigError, match=r"chat' takes a language model.*\n.*call its first parameter `tensors`"):
        checked(folder, 'fitness.objectives=[{function: "./chat.py:chat"}]')


def test_plain_tensors_and_other_models_do_not_mix(folder: Path) -> None:
    tiny_family(folder / "language")
    with pytest.raises(ConfigError, match=r"plain tensors \(no config\.json that names an architecture\)"):
        checked(folder, "parents.b=./language/a")


def test_functions_of_plain_tensors_are_refused_for_language_models(folder: Path) -> None:
    tiny_family(folder / "language")
    parents = [f"parents.{name}=./language/{name}" for name in "ab"]
    with pytest.raises(ConfigError, match=r"near' takes plain tensors"):
        checked(folder, "base=./language/base", *parents)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_its_resumption_and_its_export(folder: Path) -> None:
    runs = {}
    for name, overrides in {
        "whole": (),
        "one by one": ("workers.batch=1",),
        "short": ("budget.trials=10",),
    }.items():
        experiment = read_experiment(str(folder / "experiment.yaml"), ("workers.in_flight=6", *overrides))
        ended = start(experiment, folder / name, SilentDisplay())
        assert ended.finished
    resume(folder / "short", SilentDisplay(), extend_trials=14)
    for name in ("whole", "one by one", "short"):
        trials = Journal.read(RunFolder(folder / name).journal).trials()
        assert not any(trial.failed for trial in trials)
        runs[name] = [(trial.genome, trial.objectives) for trial in trials]
    assert len(runs["whole"]) == 24
    assert runs["whole"] == runs["one by one"] == runs["short"], "batches change nothing"

    run = folder / "whole"
    exported = export(run, None, choose(run, trial=None, pick=None))
    assert exported.responses_checked == 30
    assert {file.name for file in exported.folder.iterdir()} == {"README.md", "model.safetensors", "recipe.yaml"}
    card = (exported.folder / "README.md").read_text()
    assert "library_name: safetensors" in card
    assert "A merge of 3 models" in card
    assert "AutoModelForCausalLM" not in card
    merge.main([str(exported.folder / "recipe.yaml"), str(folder / "again")], standalone_mode=False)
    first, second = (load_file(each / "model.safetensors") for each in (exported.folder, folder / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((run / "confirmation.json").read_text())
    ray.shutdown()
