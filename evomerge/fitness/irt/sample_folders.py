"""Responses from what lm-eval writes with ``--log_samples``: ``MODEL/samples_TASK_TIME.jsonl``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.fitness.irt.responses import ResponseMatrix

_NAME = re.compile(r"samples_(?P<task>.+?)(?:_(?P<time>\d{4}-\d{2}-\d{2}T[\d\-.:]+))?\.jsonl")
_HASHES = ("doc_hash", "prompt_hash", "target_hash")
_NO_METRICS = frozenset(  # what a sample holds besides its metrics, where it does not list them
    ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", *_HASHES)
)

Sample = dict[str, Any]


def read_samples(folder: Path, task: str | None = None, metric: str | None = None) -> ResponseMatrix:
    """Read the responses of every model in a folder to the items of one task.

    A model is called like the folder that its samples lie in, ``__`` standing for ``/``; of several evaluations of a
    model the latest counts.

    Args:
        folder: it, or folders in it, hold ``samples_*.jsonl`` files.
        task: needed where there are several.
        metric: ``METRIC`` or ``METRIC,FILTER``, needed where there are several.

    Raises:
        ConfigError: there are no samples, they cannot be read, or the task or the metric is not clear.
    """
    files = _files(folder)
    if not files:
        hint = "lm-eval writes MODEL/samples_TASK_TIME.jsonl with --log_samples"
        raise ConfigError(Problem("no samples_*.jsonl files in this folder", str(folder), hint))
    task = _one("task", task, {found for found, _ in files}, "--task", folder)
    samples = {model: _samples(file) for (found, model), file in files.items() if found == task}
    metrics = {
        f"{name},{sample.get('filter', 'none')}"
        for one in samples.values()
        for sample in one
        for name in _metrics(sample)
    }
    metric = _one("metric", metric, metrics, "--metric", folder)
    rows = (
        (model, _item(sample), _response(sample, metric, f"{folder}: {model}"))
        for model, one in samples.items()
        for sample in one
        if f",{sample.get('filter', 'none')}" == metric[metric.index(",") :]
    )
    return table_of(rows, str(folder), task, metric)


def table_of(rows: Iterable[tuple[str, str, float]], where: str, task: str = "", metric: str = "") -> ResponseMatrix:
    """Return the matrix of (model, item, response) rows, NaN where there is none.

    Raises:
        ConfigError: a model responded to an item twice.
    """
    found: dict[tuple[str, str], float] = {}
    for model, item, response in rows:
        if (model, item) in found:
            what = f"the model {model!r} responds to the item {item!r} more than once"
            raise ConfigError(Problem(what, where, "keep one response of each model to each item"))
        found[model, item] = response
    models = {model: n for n, model in enumerate(dict.fromkeys(model for model, _ in found))}
    items = {item: n for n, item in enumerate(dict.fromkeys(item for _, item in found))}
    values = np.full((len(models), len(items)), np.nan)
    for (model, item), response in found.items():
        values[models[model], items[item]] = response
    return ResponseMatrix(values, tuple(models), tuple(items), task, metric)


def _files(folder: Path) -> Mapping[tuple[str, str], Path]:
    """Return the latest file of each (task, model)."""
    latest: dict[tuple[str, str], tuple[str, Path]] = {}
    for path in sorted(folder.rglob("samples_*.jsonl")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        key = (match["task"], path.resolve().parent.name.replace("__", "/"))
        dated = (match["time"] or "", path)
        if key not in latest or dated > latest[key]:
            latest[key] = dated
    return {key: path for key, (_, path) in latest.items()}


def _samples(path: Path) -> list[Sample]:
    samples = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                sample = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(Problem(f"line {number} is no JSON: {error.msg}", str(path))) from error
            if not isinstance(sample, dict) or "doc_id" not in sample:
                raise ConfigError(Problem(f"line {number} is no sample of lm-eval: it has no doc_id", str(path)))
            samples.append(sample)
    return samples


def _metrics(sample: Sample) -> list[str]:
    """Return the names of a sample's metrics that are one number."""
    names = sample.get("metrics") or [name for name in sample if name not in _NO_METRICS]
    return [name for name in names if isinstance(sample.get(name), int | float)]


def _one(kind: str, wanted: str | None, found: set[str], option: str, folder: Path) -> str:
    """Return what is wanted, or the only one there is; a metric may be named without its filter."""
    near = [name for name in sorted(found) if wanted is None or name == wanted or name.rsplit(",", 1)[0] == wanted]
    if len(near) == 1:
        return near[0]
    if near:
        listed = ", ".join(repr(name) for name in near)
        raise ConfigError(
            Problem(f"holds samples of {len(near)} {kind}s: {listed}", str(folder), f"choose one with {option}")
        )
    if not found:
        raise ConfigError(Problem(f"the samples have no {kind} that is a number", str(folder)))
    raise ConfigError(Problem(f"holds no samples of the {kind} {wanted!r}", str(folder), suggest(wanted or "", found)))


def _item(sample: Sample) -> str:
    digest = str(sample.get("doc_hash", ""))[:8]
    return f"{sample['doc_id']}-{digest}" if digest else str(sample["doc_id"])


def _response(sample: Sample, metric: str, where: str) -> float:
    value = sample.get(metric.rsplit(",", 1)[0])
    if value is None:
        return float("nan")
    if not isinstance(value, int | float):
        raise ConfigError(Problem(f"{metric} of item {_item(sample)!r} is {value!r}, which is no number", where))
    return float(value)
