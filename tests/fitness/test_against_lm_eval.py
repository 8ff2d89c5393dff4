"""Per-item values equal those of `lm_eval.simple_evaluate` on the same model and items (T11)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evomerge.fitness import Fitness, FitnessConfig
from evomerge.testing.tasks import write_choices, write_sums, write_task, write_texts
from evomerge.testing.tiny_models import tiny_config, tiny_model, tiny_tokenizer

GREETINGS = {
    "train": [],
    "test": [{"text": f"say {word}", "next": word} for word in ("hi", "ho", "yes", "no!", "a b")],
}


def lively(architecture: str, seed: int) -> Any:
    """Return a random model with weights large enough for varied answers."""
    model = tiny_model(tiny_config(architecture), seed)
    for parameter in model.parameters():
        parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    return model


def lm_eval_values(path: Path, model: Any, rows: list[int], **options: Any) -> dict[str, list[Any]]:
    """Return lm-eval's value of each row for each ``metric,filter``."""
    lm = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=4)
    manager = TaskManager(include_defaults=False, include_path=str(path.parent))
    task = path.stem
    results = lm_eval.simple_evaluate(
        lm,
        tasks=[task],
        task_manager=manager,
        samples={task: rows},
        log_samples=True,
        bootstrap_iters=0,
        **options,
    )
    values: dict[str, list[Any]] = {}
    for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"]):
        for metric in sample["metrics"]:
            values.setdefault(f"{metric},{sample['filter']}", []).append(sample[metric])
    return values


def our_values(path: Path, model: Any, rows: list[int], **objective: Any) -> dict[str, list[Any]]:
    """Return our value of each row of the test split for each ``metric,filter``."""
    config = FitnessConfig(objectives=[{"task": str(path), **objective}], batch_size=4)
    fitness = Fitness(config, base_folder=path.parent)
    (key, ids), *_ = fitness.items("confirmation").items()
    chosen = [identifier for identifier in ids if int(identifier.partition("-")[0]) in rows]
    return dict(fitness.evaluate(model, tiny_tokenizer(), {key: chosen}).tasks[key].values)


@pytest.fixture(autouse=True)
def _local_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """lm-eval takes data files relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.ERROR)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_generated_answers_score_as_in_lm_eval(tmp_path: Path, architecture: str) -> None:
    path = write_sums(tmp_path, generation_kwargs={"until": ["1", "a;"], "max_gen_toks": 9, "do_sample": False})
    rows = [0, 1, 2, 5, 7, 8, 9, 11]
    model = lively(architecture, 4)
    ours = our_values(path, model, rows, metric="exact_match,strict")
    assert ours == lm_eval_values(path, model, rows)
    assert set(ours) == {"exact_match,strict", "exact_match,flexible"}


def test_multiple_choice_scores_as_in_lm_eval(tmp_path: Path) -> None:
    path = write_choices(tmp_path)
    rows = [0, 3, 4, 5, 6, 10, 11]
    model = lively("llama", 1)
    ours = our_values(path, model, rows, metric="acc")
    assert ours == lm_eval_values(path, model, rows)
    assert 0 < sum(ours["acc,none"]) < len(rows)


def test_likelihoods_equal_lm_eval(tmp_path: Path) -> None:
    fields = {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": " {{next}}"}
    metrics = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    rows = {"search": [{"text": "x", "next": "y"}], "test": GREETINGS["test"]}
    path = write_task(tmp_path, "tiny-next", rows, fields | {"metric_list": metrics})
    model = tiny_model(tiny_config("llama"), 3)
    ours, theirs = our_values(path, model, [0, 1, 2, 3, 4]), lm_eval_values(path, model, [0, 1, 2, 3, 4])
    assert ours == {key: [pytest.approx(value, abs=1e-5) for value in column] for key, column in theirs.items()}


def test_rolling_likelihoods_equal_lm_eval(tmp_path: Path) -> None:
    path, model = write_texts(tmp_path), tiny_model(tiny_config("llama"), 1)
    ours, theirs = our_values(path, model, [0, 2, 3, 7]), lm_eval_values(path, model, [0, 2, 3, 7])
    for (ours_sum, ours_words), (sum_, words) in zip(*(v["word_perplexity,none"] for v in (ours, theirs)), strict=True):
        assert ours_sum == pytest.approx(sum_, abs=1e-4)
        assert ours_words == words


def test_few_shot_with_chat_template_and_system_scores_as_in_lm_eval(tmp_path: Path) -> None:
    shots = {"split": "train", "sampler": "first_n"}
    path, model = write_choices(tmp_path, fewshot_config=shots), tiny_model(tiny_config("llama"), 5)
    options = {"num_fewshot": 2, "apply_chat_template": True, "system_instruction": "be brief."}
    rows = list(range(12))
    assert our_values(path, model, rows, metric="acc", **options) == lm_eval_values(path, model, rows, **options)
