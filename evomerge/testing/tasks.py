"""Tiny lm-eval tasks on local data, for tests: nothing is downloaded, everything lies in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

SPLITS = ("train", "search", "test")


def write_task(
    folder: Path,
    name: str,
    rows: dict[str, list[dict[str, Any]]],
    config: dict[str, Any],
) -> Path:
    """Write a task YAML and its data (JSON lines beside it, one file a split).

    Args:
        folder: created when missing.
        name: the task's name and the file's.
        rows: documents by split; "train", "search" and "test" become the training, validation and test split.
        config: the task's fields other than its name and data.

    Returns:
        The path of the YAML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, documents in rows.items():
        files[split] = f"{name}-{split}.jsonl"
        lines = [json.dumps(document, ensure_ascii=False) for document in documents]
        (folder / files[split]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    roles = zip(("training_split", "validation_split", "test_split"), SPLITS, strict=True)
    data = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    data |= {role: split for role, split in roles if split in rows} | config
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def write_sums(folder: Path, name: str = "tiny-sums", items: int = 12, **config: Any) -> Path:
    """Write a generative task: sums to be continued, with a strict and a flexible filter."""
    fields: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}=",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [";"], "max_gen_toks": 6, "do_sample": False},
        "filter_list": [
            {"name": "strict", "filter": [{"function": "regex", "regex_pattern": r"^(\d+)$"}, TAKE_FIRST]},
            {"name": "flexible", "filter": [{"function": "regex", "regex_pattern": r"(\d)"}, TAKE_FIRST]},
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    return write_task(folder, name, _sums(items), fields | config)


def write_choices(folder: Path, name: str = "tiny-choices", items: int = 12, **config: Any) -> Path:
    """Write a multiple-choice task, with two metrics."""
    fields: dict[str, Any] = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}=",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
    }
    return write_task(folder, name, _sums(items), fields | config)


def write_texts(folder: Path, name: str = "tiny-texts", items: int = 8, **config: Any) -> Path:
    """Write a perplexity task."""
    fields: dict[str, Any] = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} = {{answer}}",
        "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    }
    return write_task(folder, name, _sums(items), fields | config)


TAKE_FIRST = {"function": "take_first"}


def _sums(items: int) -> dict[str, list[dict[str, Any]]]:
    """Return documents by split, all different; about a quarter of the prompts are longer than the others."""
    documents = []
    for n in range(len(SPLITS) * items):
        left, right = n % 7, n // 7
        choices = [str(left + right), str(left + right + 1), f"{left}+1"]
        question = ("please add " if n % 4 == 0 else "") + f"{left}+{right}"
        documents.append(
            {
                "question": question,
                "answer": choices[0],
                "choices": choices[n % 3 :] + choices[: n % 3],
                "gold": (3 - n % 3) % 3,
            }
        )
    return {split: documents[n * items : (n + 1) * items] for n, split in enumerate(SPLITS)}
