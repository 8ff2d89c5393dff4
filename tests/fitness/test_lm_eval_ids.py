"""Banks made from what lm-eval itself writes with --log_samples: its names of the items are ours in the end."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import yaml
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evomerge.errors import ConfigError
from evomerge.fitness import Fitness, FitnessConfig
from evomerge.fitness.estimate_config import EstimateConfig
from evomerge.fitness.estimation import open_banks
from evomerge.fitness.irt.bank import ItemBank, ItemParameters
from evomerge.fitness.irt.response_files import read_responses
from evomerge.testing.tasks import write_choices, write_sums
from evomerge.testing.tiny_models import tiny_config, tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def _local_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """lm-eval takes data files relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.ERROR)


def log_samples(task: Path, out: Path) -> Path:
    """Evaluate a random model on a task with lm-eval, as its command line with --log_samples does."""
    tracker = EvaluationTracker(output_path=str(out))
    tracker.general_config_tracker.log_experiment_args("hf", "pretrained=tiny", "", "", True)
    lm = HFLM(pretrained=tiny_model(tiny_config("llama"), 1), tokenizer=tiny_tokenizer(), batch_size=4)
    manager = TaskManager(include_defaults=False, include_path=str(task.parent))
    results: Any = lm_eval.simple_evaluate(
        lm, tasks=[task.stem], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    tracker.save_results_aggregated(results={"model": "tiny"}, samples=results["samples"])
    tracker.save_results_samples(task.stem, results["samples"][task.stem])
    return out


def bank_of(samples: Path, out: Path, metric: str = "acc") -> ItemBank:
    """Make a bank of lm-eval's samples; the slopes say in which order the items came."""
    matrix = read_responses(samples, None, metric)
    count = len(matrix.items)
    numbers = ItemParameters.logistic(np.arange(1.0, count + 1)[:, None], np.zeros(count))
    bank = ItemBank(matrix.task, matrix.metric, matrix.items, numbers, matrix.models, matrix.values)
    bank.write(out)
    return bank


def fitness_of(task: Path, metric: str = "acc") -> Fitness:
    return Fitness(FitnessConfig.model_validate({"objectives": [{"task": str(task), "metric": metric}]}))


def without(task: Path, *fields: str, **changed: str) -> Path:
    """Drop fields of a task file, and change others."""
    config = yaml.safe_load(task.read_text())
    task.write_text(yaml.safe_dump({k: v for k, v in config.items() if k not in fields} | changed))
    return task


def opened(task: Path, bank: Path, metric: str = "acc") -> ItemBank:
    config = EstimateConfig(items=2, bank=str(bank))
    banks = open_banks(fitness_of(task, metric), config, "estimate.bank")
    assert banks is not None
    return next(iter(banks.values()))


@pytest.mark.parametrize(("writer", "metric"), [(write_choices, "acc"), (write_sums, "exact_match,strict")])
def test_a_task_with_one_split_to_evaluate(tmp_path: Path, writer: Any, metric: str) -> None:
    task = without(writer(tmp_path), "test_split", "training_split")
    theirs = bank_of(log_samples(task, tmp_path / "logs"), tmp_path / "bank", metric)
    fitness = fitness_of(task, metric)
    assert fitness.known_items(task.stem).isdisjoint(theirs.items)
    names = fitness.lm_eval_ids(task.stem)
    assert set(names) == set(theirs.items)
    assert set(names.values()) == fitness.known_items(task.stem)
    bank = opened(task, tmp_path / "bank", metric)
    assert bank.items == fitness.items("search")[task.stem]
    # lm-eval evaluates in the order of the data, so the slope tells the row.
    rows = [int(item.partition("-")[0]) for item in bank.items]
    assert bank.parameters.slopes[:, 0].tolist() == [row + 1.0 for row in rows]


def test_documents_that_are_not_ascii_or_not_json(tmp_path: Path) -> None:
    task = without(write_choices(tmp_path), "test_split", "training_split")
    task.write_text(task.read_text() + "process_docs: !function odd.process\n")
    (tmp_path / "odd.py").write_text(
        "import datetime\n\n"
        "def process(docs):\n"
        "    return docs.map(lambda doc: {'あ': 'é', 'when': datetime.datetime(2026, 1, 1), 'f': 0.1})\n"
    )
    bank_of(log_samples(task, tmp_path / "logs"), tmp_path / "bank")
    assert opened(task, tmp_path / "bank").items == fitness_of(task).items("search")[task.stem]


def test_a_bank_of_the_test_split_holds_confirmation_items_only(tmp_path: Path) -> None:
    task = write_choices(tmp_path)
    bank_of(log_samples(task, tmp_path / "logs"), tmp_path / "bank")
    with pytest.raises(ConfigError) as error:
        opened(task, tmp_path / "bank")
    (problem,) = error.value.problems
    assert "has confirmation items only, which searches must not see" in problem.what
    assert "without `test_split`" in problem.suggestion


@pytest.mark.parametrize("searched", ["search", "train"])
def test_a_copy_of_the_task_without_its_test_split_helps(tmp_path: Path, searched: str) -> None:
    """What the message of the test above tells the user to do."""
    task = write_choices(tmp_path)
    if searched == "train":
        without(task, "validation_split")
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / task.name
    copy.write_text(task.read_text())
    without(copy, "test_split", "training_split", validation_split=searched)
    bank_of(log_samples(copy, tmp_path / "logs"), tmp_path / "bank")
    assert opened(task, tmp_path / "bank").items == fitness_of(task).items("search")[task.stem]


def test_items_whose_like_is_in_the_confirmation_are_left_out(tmp_path: Path) -> None:
    task = write_choices(tmp_path)
    found, held_out = tmp_path / "tiny-choices-search.jsonl", tmp_path / "tiny-choices-test.jsonl"
    lines = found.read_text().splitlines()
    found.write_text("\n".join([held_out.read_text().splitlines()[7], *lines]) + "\n")
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / task.name
    copy.write_text(task.read_text())
    without(copy, "test_split")
    theirs = bank_of(log_samples(copy, tmp_path / "logs"), tmp_path / "bank")
    assert fitness_of(task).lm_eval_ids(task.stem)[theirs.items[0]] is None
    assert len(theirs.items) == 13
    assert len(opened(task, tmp_path / "bank").items) == 12


def test_changed_documents_no_longer_exist(tmp_path: Path) -> None:
    task = without(write_choices(tmp_path), "test_split", "training_split")
    bank_of(log_samples(task, tmp_path / "logs"), tmp_path / "bank")
    data = tmp_path / "tiny-choices-search.jsonl"
    data.write_text(re.sub(r'"question": "', '"question": "now ', data.read_text(), count=2))
    with pytest.raises(ConfigError, match=r"2 of the item bank's 12 items no longer exist in 'tiny-choices'"):
        opened(task, tmp_path / "bank")


def test_functions_have_no_names_in_lm_eval(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f_items():\n    return 'ab'\n\n\ndef f(model, tokenizer, items): ...\n")
    fitness = Fitness(FitnessConfig.model_validate({"objectives": [{"function": f"{tmp_path}/mine.py:f"}]}))
    assert fitness.lm_eval_ids(fitness.objectives[0].task) == {}
