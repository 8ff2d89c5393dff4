"""A front that is known beforehand: a csv table, or a file such as a run's ``front.jsonl``."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.experiments.fronts import as_gains
from evomerge.searchers import ObjectiveSpec

MOST_PROBLEMS = 5
Row = tuple[int, Mapping[str, Any]]


def read_known_front(path: Path, objectives: Sequence[ObjectiveSpec], where: str) -> np.ndarray:
    """Return the gains (rows, objectives) of a known front.

    Args:
        path: a ``.csv`` with a header that names the objectives, or a ``.jsonl`` of objects that hold them, by
            themselves or under ``objectives``. Other columns are ignored, and rows that are ``predicted``.
        objectives: whose values are read, as they are scored: what is minimised is not negated.
        where: the experiment names the file here; for messages.

    Raises:
        ConfigError: there is no such file, or it does not hold a finite number for every objective of every row.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix not in readers:
        raise ConfigError(Problem(f"{path} is neither .csv nor .jsonl", where, "give it the ending of what it holds"))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        hint = "paths are relative to the experiment file"
        raise ConfigError(Problem(f"there is no file {path}", where, hint)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem(f"cannot read {path}: {error}", where)) from error
    names = [objective.name for objective in objectives]
    rows, problems = [], []
    for line, row in readers[path.suffix](path, text, names):
        bad = [problem for name in names if (problem := _problem(name, row, f"{path}:{line}"))]
        problems += bad
        if not bad:
            rows.append({name: float(row[name]) for name in names})
    if problems:
        more = len(problems) - MOST_PROBLEMS
        rest = [Problem(f"and {more} more values that are no numbers", str(path))] if more > 0 else []
        raise ConfigError(problems[:MOST_PROBLEMS] + rest)
    if not rows:
        raise ConfigError(Problem("it has no rows", str(path), f"one row a point, with {', '.join(names)}"))
    return as_gains(rows, objectives)


def _csv_rows(path: Path, text: str, names: Sequence[str]) -> Iterator[Row]:
    lines = csv.reader(text.splitlines(), skipinitialspace=True)
    header = [name.strip() for name in next(lines, [])]
    missing = [name for name in names if name not in header]
    if missing:
        raise ConfigError(
            [
                Problem(f"it has no column for the objective {name!r}", f"{path}:1", suggest(name, header))
                for name in missing
            ]
        )
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(header):
            what = f"the row has {len(cells)} columns, the header names {len(header)}"
            raise ConfigError(Problem(what, f"{path}:{lines.line_num}"))
        yield lines.line_num, dict(zip(header, cells, strict=True))


def _jsonl_rows(path: Path, text: str, names: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ConfigError(Problem(f"it is no JSON: {error}", f"{path}:{number}")) from error
        if isinstance(entry, dict) and entry.get("predicted"):  # a run's, confirmed but not scored on its search items
            continue
        row = entry.get("objectives", entry) if isinstance(entry, dict) else entry
        if not isinstance(row, dict):
            raise ConfigError(Problem("it holds no object with the objectives", f"{path}:{number}"))
        if missing := [name for name in names if name not in row]:
            raise ConfigError(
                [
                    Problem(f"it has no objective {name!r}", f"{path}:{number}", suggest(name, row.keys()))
                    for name in missing
                ]
            )
        yield number, row


def _problem(name: str, row: Mapping[str, Any], where: str) -> Problem | None:
    value = row[name]
    try:
        finite = not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        finite = False
    return None if finite else Problem(f"{value!r} is no finite number for the objective {name!r}", where)
