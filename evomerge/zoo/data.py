"""The zoo's data sets: each task's questions in three splits that share no meaning."""

from __future__ import annotations

import json
import random
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Value, disable_progress_bars, enable_progress_bars
from datasets.utils.logging import is_progress_bar_enabled

from evomerge.zoo.world import ask, split_of

SPLITS = ("train", "search", "test")
FEATURES = Features({"prompt": Value("string"), "answer": Value("string"), "meaning": Value("string")})


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


def read_split(folder: Path, split: str) -> list[dict[str, str]]:
    """Return the items of one written split."""
    import pyarrow.parquet

    rows: list[dict[str, str]] = pyarrow.parquet.read_table(folder / f"{split}.parquet").to_pylist()
    return rows


def _make_split(task: str, split: str, size: int, seed: int) -> Dataset:
    rng = random.Random(f"{seed}/{task}/{split}")
    items: dict[str, dict[str, str]] = {}
    while len(items) < size:
        question = ask(task, rng)
        if split_of(question.meaning) == split:
            items.setdefault(
                question.prompt,
                {"prompt": question.prompt, "answer": question.answer, "meaning": json.dumps(question.meaning)},
            )
    return Dataset.from_list(list(items.values()), features=FEATURES)
