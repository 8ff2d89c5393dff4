"""Reading responses: npz, csv, parquet, and folders of lm-eval's ``samples_*.jsonl``."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigError, Problem
from evomerge.fitness.irt.bank import Array
from evomerge.fitness.irt.responses import ResponseMatrix
from evomerge.fitness.irt.sample_folders import read_samples, table_of

LONG = ("model", "item", "response")
FORMS = "NAME.npz, NAME.csv, NAME.parquet, or a folder of lm-eval's samples_*.jsonl"


def read_responses(path: Path, task: str | None = None, metric: str | None = None) -> ResponseMatrix:
    """Read a matrix of responses, as it is: :meth:`ResponseMatrix.problems` says whether it is of use.

    * npz: arrays ``responses`` (models, items), ``models`` and ``items``; or ``responses_packed`` (``numpy.packbits``
      along the items) with ``shape`` in place of ``responses``.
    * csv and parquet: a row for each model, its name first, a column for each item; or columns ``model``, ``item`` and
      ``response``. Empty cells, NA and NaN are missing.
    * a folder: ``MODEL/samples_TASK_TIME.jsonl``, as lm-eval writes with ``--log_samples``; an item's id is its
      ``doc_id`` and the first 8 characters of its ``doc_hash``.

    Args:
        path: the file or folder.
        task: which task of a folder that holds several.
        metric: which metric of a folder whose samples have several, as ``METRIC`` or ``METRIC,FILTER``.

    Raises:
        ConfigError: it cannot be read as a matrix of responses.
    """
    if path.is_dir():
        return read_samples(path, task, metric)
    readers: Mapping[str, Callable[[Path], ResponseMatrix]] = {
        ".npz": _read_npz,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if not path.is_file():
        raise ConfigError(Problem("no such file or folder", str(path), f"responses come as {FORMS}"))
    if reader is None:
        raise ConfigError(
            Problem(f"responses cannot be read from {path.suffix or 'such'} files", str(path), f"use {FORMS}")
        )
    return reader(path)


def _read_npz(path: Path) -> ResponseMatrix:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in {*_NPZ, "responses", "responses_packed", "shape"}}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(Problem(f"no npz file of plain arrays: {error}", str(path))) from error
    packed = "responses" not in arrays and {"responses_packed", "shape"} <= arrays.keys()
    missing = [key for key in ("responses", *_NPZ) if key not in arrays and not (packed and key == "responses")]
    if missing:
        raise ConfigError(Problem(f"holds no {', '.join(missing)}", str(path), "it needs responses, models and items"))
    if packed:
        models, items = (int(n) for n in arrays["shape"])
        bits = np.unpackbits(arrays["responses_packed"], axis=1)
        if bits.shape[0] != models or bits.shape[1] < items:
            raise ConfigError(Problem("responses_packed does not fit shape", str(path)))
        arrays["responses"] = bits[:, :items]
    return ResponseMatrix(
        _numbers(arrays["responses"], path),
        tuple(str(name) for name in arrays["models"].tolist()),
        tuple(str(name) for name in arrays["items"].tolist()),
    )


_NPZ = ("models", "items")


def _read_csv(path: Path) -> ResponseMatrix:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(Problem(f"no csv file: {error}", str(path))) from error
    if len(rows) < 2:
        raise ConfigError(
            Problem("holds no responses", str(path), "it needs a line of item ids and a line for each model")
        )
    ragged = [n for n, row in enumerate(rows, 1) if len(row) != len(rows[0])]
    if ragged:
        what = f"row {ragged[0]} has {len(rows[ragged[0] - 1])} cells, but the first row has {len(rows[0])}"
        raise ConfigError(Problem(what, str(path)))
    return _from_columns(rows[0], list(zip(*rows[1:], strict=True)), path)


def _read_parquet(path: Path) -> ResponseMatrix:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ConfigError(Problem(f"no parquet file: {error}", str(path))) from error
    names = list(table.column_names)
    index = [n for n, name in enumerate(names) if name in ("model", "models", "__index_level_0__")][:1]
    order = [*index, *(n for n in range(len(names)) if n not in index)]
    columns = [table.column(n).to_pylist() for n in order]
    return _from_columns([names[n] for n in order], columns, path)


def _from_columns(names: Sequence[str], columns: Sequence[Sequence[Any]], path: Path) -> ResponseMatrix:
    if set(names) == set(LONG):
        models, items, responses = (columns[list(names).index(name)] for name in LONG)
        rows = zip(map(str, models), map(str, items), _numbers(responses, path).tolist(), strict=True)
        return table_of(rows, str(path))
    if len(names) < 2:
        raise ConfigError(Problem("holds no items", str(path), "the first column names models, the others are items"))
    values = np.stack([_numbers(column, path, name) for name, column in zip(names[1:], columns[1:], strict=True)], 1)
    return ResponseMatrix(values, tuple(str(name) for name in columns[0]), tuple(names[1:]))


def _numbers(values: Any, path: Path, column: str = "") -> Array:
    """Return float64; what is empty, NA or None is NaN, and right and wrong are 1 and 0."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return values.astype(np.float64)
    try:
        return np.array([_number(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        reason = f"responses must be numbers: {error}" + (f" (column {column!r})" if column else "")
        raise ConfigError(Problem(reason, str(path), "missing responses are empty cells or NaN")) from error


def _number(value: Any) -> float:
    if value is None or (isinstance(value, str) and value.strip() in ("", "NA")):
        return float("nan")
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return float(value.strip().lower() == "true")
    return float(value)
