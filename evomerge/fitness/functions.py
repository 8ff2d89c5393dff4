"""Python functions as fitness: anything that lm-eval does not measure.

In the experiment file: ``{function: ./my.py:politeness, direction: maximize}``. In ``my.py``, either one
number for the model as a whole::

    def politeness(model, tokenizer) -> float: ...

or one number an item, with the items (any texts, such as prompts) declared beside it by a function of the
same name and ``_items``, and the numbers in the order of ``items``. These can be split into search and
confirmation items like those of any task, so prefer this form::

    def politeness_items() -> Sequence[str]: ...
    def politeness(model, tokenizer, items: Sequence[str]) -> Sequence[float]: ...

Both forms may return a mapping from metric names to such results; the objective's ``metric`` picks one.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from evomerge.errors import FitnessError, Problem, UnknownNameError
from evomerge.fitness.items import Item, Pools, content_hash, make_items, question_hash, split_by_hash
from evomerge.fitness.language_model import Resident
from evomerge.fitness.metrics import Metric
from evomerge.fitness.responses import TaskResponses, Value

DEFAULT_METRIC = "score"


class FunctionTask:
    """A Python function as a task; see the module's docstring for what it is given and may return.

    Args:
        reference: ``module:function`` or ``path.py:function``; also the task's key.
        base_folder: what a relative path starts from.
        confirmation_share: share of declared items kept for confirmation.

    Raises:
        FitnessError: the module cannot be imported, or its declared items are none.
        UnknownNameError: the module has no such function.
    """

    def __init__(self, reference: str, *, base_folder: Path | None, confirmation_share: float) -> None:
        self.key = reference
        self._function, declare = _load(reference, base_folder)
        self.metrics: dict[str, Metric] = {}
        self._declares_items = declare is not None
        texts = self._declared(declare) if declare else [""]
        made = make_items((text, content_hash(text)) for text in texts)
        items = tuple(replace(item, question=question_hash(item.doc)) for item in made)
        self.pools: Pools = {"search": items, "confirmation": items}
        if declare:
            self.pools = split_by_hash(items, confirmation_share)
        self._items = {item.id: item for item in items}

    def metric(self, name: str | None) -> Metric:
        """Return the metric that an objective means: a mean over items, to be maximised by default."""
        metric = Metric(name or DEFAULT_METRIC, "none", "maximize", "mean", math.fsum)
        return self.metrics.setdefault(metric.key, metric)

    def warnings(self) -> list[Problem]:
        """Return what is allowed but likely to mislead."""
        if self._declares_items:
            return []
        what = f"function {self.key!r} declares no items, so confirmation repeats the search's measurement"
        return [Problem(what, "", f"declare them in a function {self._function.__name__}_items() beside it")]

    def problems(self, tokenizer: Any) -> list[Problem]:
        """Return why this task cannot be run with a tokenizer: never."""
        return []

    def lm_eval_ids(self) -> dict[str, str | None]:
        """Return lm-eval's names of the items: none, as it does not know them."""
        return {}

    def gold_problems(self) -> list[Problem]:
        """Return why `gold` would fail: always, as a function names no answers."""
        what = f"function {self.key!r} names no right answers, so they have no probability"
        return [Problem(what, "", "ask for the probabilities of lm-eval tasks only")]

    def gold(self, resident: Resident, items: Sequence[str]) -> dict[str, float]:
        """Refuse.

        Raises:
            FitnessError: always; see `gold_problems`.
        """
        raise FitnessError(self.gold_problems()[0].what)

    def prompt(self, tokenizer: Any = None) -> str:
        """Return the first declared item, or the empty text."""
        return str(self.pools["search"][0].doc) if self.pools["search"] else ""

    def respond(self, resident: Resident, items: Sequence[str], used_filters: frozenset[str]) -> TaskResponses:
        """Call the function on items.

        Raises:
            FitnessError: the function raised (its traceback is in the message), or returned something else
                than numbers.
        """
        unknown = [item for item in items if item not in self._items]
        if unknown:
            raise FitnessError(f"function {self.key!r} declares no item {unknown[0]!r}; have its items changed?")
        chosen = sorted((self._items[item] for item in set(items)), key=lambda item: item.index)
        arguments = {"items": [item.doc for item in chosen]} if self._declares_items else {}
        try:
            with torch.no_grad():
                result = self._function(resident.model, resident.tokenizer, **arguments)
        except Exception as error:
            lines = "".join(traceback.format_exception(error))
            raise FitnessError(f"function {self.key!r} raised {type(error).__name__}: {error}\n{lines}") from error
        named = result if isinstance(result, Mapping) else {DEFAULT_METRIC: result}
        values = {f"{name},none": self._numbers(name, value, chosen) for name, value in named.items()}
        return TaskResponses(tuple(item.id for item in chosen), values)

    def _declared(self, declare: Callable[[], Sequence[str]]) -> list[str]:
        texts = [str(text) for text in declare()]
        if len(texts) < 2:
            raise FitnessError(
                f"function {self.key!r} declares {len(texts)} items; at least 2 are needed to split them"
            )
        return texts

    def _numbers(self, name: str, value: Any, items: Sequence[Item]) -> list[Value]:
        values = list(value) if self._declares_items else [value]
        try:
            numbers = [float(number) for number in values]
        except (TypeError, ValueError) as error:
            raise FitnessError(f"function {self.key!r} returned {value!r} for {name!r}, not numbers") from error
        if len(numbers) != len(items):
            raise FitnessError(f"function {self.key!r} returned {len(numbers)} numbers for {len(items)} items")
        if not all(map(math.isfinite, numbers)):
            raise FitnessError(f"function {self.key!r} returned a number that is not finite for {name!r}")
        return list(numbers)


def _load(reference: str, base_folder: Path | None) -> tuple[Callable[..., Any], Callable[[], Sequence[str]] | None]:
    source, _, name = reference.rpartition(":")
    if not source or not name.isidentifier():
        raise FitnessError(f"function {reference!r}: write `module:function` or `./file.py:function`")
    try:
        module = _from_file(source, base_folder) if source.endswith(".py") else importlib.import_module(source)
    except FitnessError:
        raise
    except Exception as error:
        lines = "".join(traceback.format_exception(error))
        raise FitnessError(f"function {reference!r}: importing {source!r} failed: {error}\n{lines}") from error
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if not callable(getattr(module, name, None)):
        raise UnknownNameError("function", name, functions, source)
    return getattr(module, name), getattr(module, f"{name}_items", None)


def _from_file(source: str, base_folder: Path | None) -> ModuleType:
    path = ((base_folder or Path.cwd()) / Path(source).expanduser()).resolve()
    if not path.is_file():
        raise FitnessError(f"function {source!r}: the file {path} does not exist")
    name = f"evomerge_function_{sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FitnessError(f"function {source!r}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
