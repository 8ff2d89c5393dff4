"""Public benchmarks, known by their data: a search on the items that everybody reports scores on measures nothing.

What a task is called says little, as files are copied and renamed; where its items come from, and from which split,
says what it is. ``public_benchmarks.yaml`` lists the data sets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import yaml

from evomerge.errors import Problem

SPLIT_WORDS = ("train", "validation", "valid", "val", "dev", "test")  # in names of files
FILE_LOADERS = ("json", "csv", "parquet", "text", "arrow", "webdataset")  # of `datasets`: the data is in `data_files`


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark: patterns of the data sets' ids and of the splits that its scores are reported on."""

    name: str
    splits: tuple[str, ...]
    datasets: tuple[str, ...]

    def holds(self, dataset: str) -> bool:
        """Whether its items lie in a data set of this id, a local copy's path, or a file's address."""
        return any(_is_of(dataset.lower(), pattern.lower()) for pattern in self.datasets)

    def reports_on(self, split: str) -> bool:
        """Whether its scores are reported on a split, or on a part of one (``test[:50%]``)."""
        names = [part.partition("[")[0].strip() for part in split.split("+")]
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.splits)


@cache
def benchmarks() -> tuple[Benchmark, ...]:
    """Return the public benchmarks that are known."""
    text = files("evomerge.fitness").joinpath("public_benchmarks.yaml").read_text(encoding="utf-8")
    return tuple(
        Benchmark(name, tuple(entry["splits"]), tuple(entry["datasets"]))
        for name, entry in yaml.safe_load(text).items()
    )


def benchmark_of(dataset: str | None, split: str | None, data_files: Any = None) -> Benchmark | None:
    """Return the benchmark whose reported items these are; None if there is none.

    Args:
        dataset: a task's ``dataset_path``: id on the Hub, folder, or the name of a file format.
        split: of the data.
        data_files: where the files of a format lie: an address, several, or either by split.
    """
    if dataset is None or split is None:
        return None
    if dataset not in FILE_LOADERS:
        return next((b for b in benchmarks() if b.holds(dataset) and b.reports_on(split)), None)
    for address in _files_of(data_files, split):
        # What a file holds is told by its name, where it says so, rather than by what the task calls the split.
        told = [word for word in re.split(r"[^a-z]+", PurePosixPath(address).name.lower()) if word in SPLIT_WORDS]
        for benchmark in benchmarks():
            if benchmark.holds(address) and any(benchmark.reports_on(name) for name in told or [split]):
                return benchmark
    return None


def benchmark_warning(task: str, benchmark: Benchmark, split: str) -> Problem:
    """Return the warning that a task's search items are those of a benchmark."""
    what = (
        f"task {task!r} searches on the {split!r} split of {benchmark.name}, a public benchmark that is reported on it"
    )
    hint = (
        f"the winner's {benchmark.name} score is then fitted, not measured: search on a training or validation split, "
        "or on data of your own, and where you report the score say what was searched on"
    )
    return Problem(what, "", hint)


def _files_of(data_files: Any, split: str) -> list[str]:
    """Return the addresses of a split's files."""
    if isinstance(data_files, Mapping):
        name = split.partition("[")[0].strip()
        return _files_of(data_files.get(name, list(data_files.values())), split)
    if isinstance(data_files, (list, tuple)):
        return [address for each in data_files for address in _files_of(each, split)]
    return [] if data_files is None else [str(data_files)]


def _is_of(source: str, pattern: str) -> bool:
    """Whether a source is a data set: by its id, or for a path or URL by the names of its folders and its file."""
    if not _is_address(source):
        return fnmatchcase(source, pattern)
    *folders, file = [part for part in re.split(r"[/\\]", source.partition("?")[0]) if part]
    stem = file.partition(".")[0]
    names = [*folders, file, stem, re.sub(rf"[-_]({'|'.join(SPLIT_WORDS)})$", "", stem)]
    pairs = ["/".join(pair) for pair in pairwise(names)]
    cached = [name.removeprefix("datasets--").replace("--", "/") for name in names]  # as the Hub's cache calls folders
    last = pattern.rpartition("/")[2].rstrip("*")
    return last in names or any(fnmatchcase(name, pattern) for name in (*pairs, *cached) if "/" in name)


def _is_address(source: str) -> bool:
    """Whether it is a path or URL rather than an id on the Hub."""
    return source.startswith(("/", ".", "~")) or "://" in source or source.count("/") > 1 or "\\" in source
