"""The zoo's data sets: each task's questions in three splits that share no meaning."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, disable_progress_bars, enable_progress_bars
from datasets.utils.logging import is_progress_bar_enabled

from evomerge.zoo.world import ask, split_of

SPLITS = ("train", "search", "test")
Item = dict[str, Any]  # a row: prompt, answer, meaning (JSON), words (whether a number is spelled out)
COLUMNS = {"prompt": "string", "answer": "string", "meaning": "string", "words": "bool"}
FEATURES = Features({name: Value(kind) for name, kind in COLUMNS.items()})


def make_dataset(task: str, sizes: dict[str, int], seed: int) -> DatasetDict:
    """Return ``task``'s splits, each with ``sizes[split]`` different prompts."""
    return DatasetDict({split: _make_split(task, split, sizes[split], seed) for split in SPLITS})


def write_dataset(dataset: DatasetDict, folder: Path) -> None:
    """Write each split as ``folder/SPLIT.parquet``."""
    folder.mkdir(parents=True)
    shown = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        for split, items in dataset.items():
            items.to_parquet(folder / f"{split}.parquet")
    finally:
        if shown:
            enable_progress_bars()


def read_split(folder: Path, split: str) -> list[Item]:
    """Return the items of one written split."""
    import pyarrow.parquet

    rows: list[Item] = pyarrow.parquet.read_table(folder / f"{split}.parquet").to_pylist()
    return rows


def _make_split(task: str, split: str, size: int, seed: int) -> Dataset:
    rng = random.Random(f"{seed}/{task}/{split}")
    items: dict[str, Item] = {}
    while len(items) < size:
        question = ask(task, rng)
        if split_of(question.meaning) == split:
            items[question.prompt] = asdict(question) | {"meaning": json.dumps(question.meaning)}
    return Dataset.from_list(list(items.values()), features=FEATURES)
