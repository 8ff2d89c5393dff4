"""Item banks: what calibration found of a task's items, kept as two files beside each other.

``NAME.yaml`` says which task, metric, items and models, and how the bank was made; ``NAME.safetensors`` holds the
numbers: of the items, and the responses that they were found from, by which estimators are judged and weighted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load, save

from evomerge.errors import ConfigError, Problem

Array: TypeAlias = npt.NDArray[np.float64]
TENSORS = ("slopes", "intercepts", "lower", "upper")
_HEAD = "# An item bank, made by `evomerge calibrate`; the numbers are in the .safetensors file beside it.\n"


@dataclass(frozen=True, eq=False)
class ItemParameters:
    """What a response model knows of the items: P(correct) = lower + (upper - lower) sigmoid(slopes @ θ + intercepts).

    Abilities θ are N(0, I) in the population.

    Attributes:
        slopes: float64 (items, dimensions).
        intercepts: float64 (items,).
        lower: float64 (items,), the probability of guessing right; 0 but for the 3PL.
        upper: float64 (items,), 1 unless able models slip.
    """

    slopes: Array
    intercepts: Array
    lower: Array
    upper: Array

    @classmethod
    def logistic(cls, slopes: Array, intercepts: Array, lower: Array | None = None) -> ItemParameters:
        """Return parameters without slips, and without guessing unless ``lower`` is given."""
        return cls(slopes, intercepts, np.zeros_like(intercepts) if lower is None else lower, np.ones_like(intercepts))

    @property
    def dimensions(self) -> int:
        """The number of abilities."""
        return self.slopes.shape[1]

    def __len__(self) -> int:
        return len(self.intercepts)

    def chosen(self, rows: npt.ArrayLike) -> ItemParameters:
        """Return the parameters of some items: indices or a mask."""
        index = np.asarray(rows)
        return ItemParameters(*(getattr(self, name)[index] for name in TENSORS))

    def problems(self, where: str = "") -> list[Problem]:
        """Return what makes these no item parameters: shapes, numbers that are not finite, impossible probabilities."""
        items = len(self.intercepts)
        if self.slopes.ndim != 2 or any(getattr(self, name).shape != (items,) for name in TENSORS[1:]):
            shapes = ", ".join(f"{name} {getattr(self, name).shape}" for name in TENSORS)
            return [Problem(f"the shapes do not fit (items, dimensions) and (items,): {shapes}", where)]
        if len(self.slopes) != items:
            return [Problem(f"slopes of {len(self.slopes)} items, but intercepts of {items}", where)]
        if not all(np.isfinite(getattr(self, name)).all() for name in TENSORS):
            return [Problem("some numbers are not finite", where)]
        if (self.lower < 0).any() or (self.upper > 1).any() or (self.lower >= self.upper).any():
            return [Problem("lower and upper must be 0 ≤ lower < upper ≤ 1", where)]
        return []


@dataclass(frozen=True, eq=False)
class ItemBank:
    """The calibrated items of one task under one metric.

    Attributes:
        task: the key of the task.
        metric: which of the task's metrics the responses are.
        items: their ids, in the order of the parameters' rows.
        parameters: what calibration found.
        models: names of the models that it was found from.
        responses: theirs, float64 (models, items), NaN where missing.
        gold: their soft responses (`evomerge.fitness.gold`), of the same shape; None if nobody asked for them.
        parents: names of those models of which all others are merges; empty if they are not.
        made: how it was made, for people: model, numbers of models, likelihoods.
    """

    task: str
    metric: str
    items: tuple[str, ...]
    parameters: ItemParameters
    models: tuple[str, ...]
    responses: Array
    parents: tuple[str, ...] = ()
    gold: Array | None = None
    made: Mapping[str, Any] = field(default_factory=dict)

    def require(self, task: str, metric: str, items: Collection[str], where: str = "") -> None:
        """Check that this bank is of this task and metric, and that its items are among ``items``.

        Raises:
            ConfigError: it is of another task or metric, or some of its items no longer exist.
        """
        again = "calibrate again on responses to this task: evomerge calibrate"
        if (self.task, self.metric) != (task, metric):
            mine, yours = f"{self.task!r} ({self.metric})", f"{task!r} ({metric})"
            raise ConfigError(Problem(f"the item bank was made for the task {mine}, not for {yours}", where, again))
        existing = set(items)
        gone = [item for item in self.items if item not in existing]
        if gone:
            some = ", ".join(repr(item) for item in gone[:3])
            what = f"{len(gone)} of the item bank's {len(self.items)} items no longer exist in {task!r}, such as {some}"
            hint = f"the data or the prompt have changed, or another split is meant; {again}"
            raise ConfigError(Problem(what, where, hint))

    def only(self, items: Sequence[str]) -> ItemBank:
        """Return the bank of some of its items, in their order.

        Raises:
            KeyError: an item is not in the bank.
        """
        place = {item: row for row, item in enumerate(self.items)}
        rows = [place[item] for item in items]
        gold = None if self.gold is None else self.gold[:, rows]
        kept = self.parameters.chosen(rows), self.models, self.responses[:, rows], self.parents, gold
        return ItemBank(self.task, self.metric, tuple(items), *kept, self.made)

    @property
    def fingerprint(self) -> str:
        """16 hex characters that differ where the items, their parameters or the responses do."""
        numbers = b"".join(np.ascontiguousarray(getattr(self.parameters, name)).tobytes() for name in TENSORS)
        numbers += self.responses.astype(np.float32).tobytes()
        return sha256(json.dumps([self.task, self.metric, *self.items]).encode() + numbers).hexdigest()[:16]

    def write(self, path: Path) -> tuple[Path, Path]:
        """Write the bank; returns its YAML and its safetensors file. The ending of ``path`` does not matter.

        Each file appears whole or not at all, and the YAML, which holds the hash of the other, comes last.
        """
        header, numbers = bank_files(path)
        header.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: np.ascontiguousarray(getattr(self.parameters, name)) for name in TENSORS}
        tensors["responses"] = self.responses.astype(np.float32)
        if self.gold is not None:
            tensors["gold"] = self.gold.astype(np.float32)
        data = save(tensors)
        _replace(numbers, data)
        content = {
            "task": self.task,
            "metric": self.metric,
            "parameters": numbers.name,
            "sha256": sha256(data).hexdigest(),
            "made": dict(self.made),
            "items": list(self.items),
            "models": list(self.models),
            "parents": list(self.parents),
        }
        _replace(header, (_HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)).encode())
        return header, numbers

    @classmethod
    def read(cls, path: Path) -> ItemBank:
        """Read a bank that ``write`` wrote, given either of its files or their common name.

        Raises:
            ConfigError: a file is missing or is no part of an item bank, or the two do not belong together.
        """
        header, numbers = bank_files(path)
        content = _part(header, lambda data: yaml.safe_load(data.decode()))
        kinds = {
            "task": str,
            "metric": str,
            "sha256": str,
            "items": list,
            "models": list,
            "parents": list,
            "made": dict,
        }
        content = content if isinstance(content, dict) else {}
        wrong = [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
        if wrong:
            raise ConfigError(Problem(f"no item bank: {', '.join(wrong)} missing or of the wrong kind", str(header)))
        if sha256(_part(numbers, bytes)).hexdigest() != content["sha256"]:
            hint = "the two files are written together by evomerge calibrate; move and copy them together"
            raise ConfigError(Problem(f"was not written with {header.name}", str(numbers), hint))
        tensors = _part(numbers, load)
        missing = [name for name in (*TENSORS, "responses") if name not in tensors]
        if missing:
            raise ConfigError(Problem(f"holds no {', '.join(missing)}", str(numbers)))
        parameters = ItemParameters(*(tensors[name].astype(np.float64) for name in TENSORS))
        items, models, parents = (tuple(map(str, content[kind])) for kind in ("items", "models", "parents"))
        responses = tensors["responses"].astype(np.float64)
        gold = tensors["gold"].astype(np.float64) if "gold" in tensors else None
        problems = parameters.problems(str(numbers))
        if not problems and len(items) != len(parameters):
            problems = [Problem(f"{len(parameters)} items, but {header.name} names {len(items)}", str(numbers))]
        for part in () if problems else (responses,) if gold is None else (responses, gold):
            if part.shape != (len(models), len(items)):
                what = f"responses of shape {part.shape}, but {header.name} names {len(models)} models"
                problems = [Problem(what, str(numbers))]
        if len(set(items)) < len(items):
            problems.append(Problem("names some items twice", str(header)))
        if problems:
            raise ConfigError(problems)
        return cls(
            content["task"], content["metric"], items, parameters, models, responses, parents, gold, content["made"]
        )


def bank_files(path: Path) -> tuple[Path, Path]:
    """Return the YAML and the safetensors file of the bank at ``path``."""
    stem = path.name
    for suffix in (".yaml", ".yml", ".safetensors"):
        stem = stem.removesuffix(suffix)
    return path.with_name(f"{stem}.yaml"), path.with_name(f"{stem}.safetensors")


def _part(path: Path, read: Callable[[bytes], Any]) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        hint = "an item bank is two files, NAME.yaml and NAME.safetensors, made by evomerge calibrate"
        raise ConfigError(Problem(what, str(path), hint)) from error
    try:
        return read(data)
    except (yaml.YAMLError, SafetensorError, UnicodeDecodeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(Problem(f"no part of an item bank: {reason}", str(path))) from error


def _replace(path: Path, data: bytes) -> None:
    """Write atomically: the old file or the new one, never a part."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        made.write_bytes(data)
        os.replace(made, path)
    finally:
        made.unlink(missing_ok=True)
