"""Python functions as fitness: anything that lm-eval does not measure.

In the experiment file: ``{function: ./my.py:politeness, direction: maximize}``. In ``my.py``, either one
number for the model as a whole::

    def politeness(model, tokenizer) -> float: ...

or one number an item, with the items (any texts, such as prompts) declared beside it by a function of the
same name and ``_items``, and the numbers in the order of ``items``. These can be split into search and
confirmation items like those of any task, so prefer this form::

    def politeness_items() -> Sequence[str]: ...
    def politeness(model, tokenizer, items: Sequence[str]) -> Sequence[float]: ...

``_items`` may also return ``{"search": …, "confirmation": …}``, the two splits themselves.

Where the parents are plain tensors, of no model of transformers, the name of the first parameter says what the function
takes: ``tensors``, name → tensor of one merged model, or ``batch``, of several at once, each tensor with a dimension of
them in front; then it returns one result a model, such as an array of shape (models, items)::

    def accuracy(tensors: Mapping[str, torch.Tensor], items: Sequence[str]) -> Sequence[float]: ...
    def accuracy(batch: Mapping[str, torch.Tensor], items: Sequence[str]) -> Sequence[Sequence[float]]: ...

All forms may return a mapping from metric names to such results; the objective's ``metric`` picks one.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch

from evomerge.errors import FitnessError, Problem, UnknownNameError
from evomerge.fitness.isolation import own_random_state
from evomerge.fitness.items import Item, Pools, content_hash, make_items, question_hash, separate, split_by_hash
from evomerge.fitness.language_model import Resident
from evomerge.fitness.metrics import Metric
from evomerge.fitness.objectives import Split
from evomerge.fitness.responses import TaskResponses, Value

DEFAULT_METRIC = "score"
SPLITS: tuple[Split, ...] = get_args(Split)
Form: TypeAlias = Literal["model", "tensors", "batch"]
Tensors: TypeAlias = Mapping[str, torch.Tensor]
Declared: TypeAlias = Sequence[str] | Mapping[str, Sequence[str]]


class _Chosen(NamedTuple):
    """The asked items in the order of the data, their ids and their texts."""

    items: tuple[Item, ...]
    ids: tuple[str, ...]
    texts: list[str]


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
        self.form: Form = _form(self._function)
        self.metrics: dict[str, Metric] = {}
        self._declares_items = declare is not None
        if declare:
            self.pools: Pools = self._declared(declare(), confirmation_share)
        else:
            items = _items([""])
            self.pools = {"search": items, "confirmation": items}
        self._items = {item.id: item for pool in self.pools.values() for item in pool}
        self._asked: tuple[Sequence[str], _Chosen] = ((), _Chosen((), (), []))
        self._exact: dict[int, bool] = {}

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
        """Return why this task cannot be run on language models: it takes plain tensors."""
        if self.form == "model":
            return []
        what = f"function {self.key!r} takes plain tensors (its first parameter is {self.form!r}), not language models"
        return [Problem(what, "", "let it take (model, tokenizer), and the items if it declares any")]

    def plain_problems(self) -> list[Problem]:
        """Return why this task cannot be run on plain tensors: it takes a model and its tokenizer."""
        if self.form != "model":
            return []
        what = f"function {self.key!r} takes a language model, and the parents are plain tensors"
        return [Problem(what, "", "call its first parameter `tensors`, or `batch` (docs/fitness.md)")]

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
        chosen = self._chosen(items)
        with torch.no_grad():
            result = self._call(chosen, resident.model, resident.tokenizer)
        return self._responses(result, chosen)

    def respond_plain(self, stacked: Tensors, items: Sequence[str], seed: int) -> list[TaskResponses | FitnessError]:
        """Call the function on plain models; what it does with one of them is the same in any company.

        A function that takes a batch is called with 1, 2, 4, 8, … models. The first batch of each size is also
        evaluated one by one: if a number differs in any bit, no batches of that size are used. What raises for a batch
        is called again one by one, so that one model's fault is its own.

        Args:
            stacked: name → tensor of shape (models, …).
            items: ids.
            seed: of the global random generators, before each call.

        Returns:
            For each model its responses, or why it has none.
        """
        chosen, count = self._chosen(items), len(next(iter(stacked.values())))
        found: list[TaskResponses | FitnessError] = []
        while len(found) < count:
            size = 1 << ((count - len(found)).bit_length() - 1) if self.form == "batch" else 1
            part = {name: each[len(found) : len(found) + size] for name, each in stacked.items()}
            found += self._respond_part(part, size, chosen, seed)
        return found

    def _respond_part(self, part: Tensors, size: int, chosen: _Chosen, seed: int) -> list[TaskResponses | FitnessError]:
        if size == 1:
            return [self._respond_alone(part, chosen, seed)]
        together = None
        if self._exact.get(size, True):
            try:
                together = self._respond_together(part, size, chosen, seed)
            except FitnessError:  # whose fault it is shows when each is called alone
                together = None
        if together is not None and size in self._exact:
            return together
        alone = [
            self._respond_alone({name: each[n : n + 1] for name, each in part.items()}, chosen, seed)
            for n in range(size)
        ]
        if together is not None:
            self._exact[size] = [*map(_bits, together)] == [*map(_bits, alone)]
        return alone

    def _respond_alone(self, part: Tensors, chosen: _Chosen, seed: int) -> TaskResponses | FitnessError:
        try:
            if self.form == "batch":
                return self._respond_together(part, 1, chosen, seed)[0]
            with torch.no_grad(), own_random_state(seed):
                return self._responses(self._call(chosen, {name: each[0] for name, each in part.items()}), chosen)
        except FitnessError as error:
            return error

    def _respond_together(
        self, part: Tensors, size: int, chosen: _Chosen, seed: int
    ) -> list[TaskResponses | FitnessError]:
        """Call the function on a batch.

        Raises:
            FitnessError: it raised, or did not return one result a model.
        """
        with torch.no_grad(), own_random_state(seed):
            result = self._call(chosen, part)
        named = result if isinstance(result, Mapping) else {DEFAULT_METRIC: result}
        rows = {name: _listed(value) for name, value in named.items()}
        for name, values in rows.items():
            if len(values) != size:
                raise FitnessError(f"function {self.key!r} returned {len(values)} results for {size} models ({name!r})")
        found: list[TaskResponses | FitnessError] = []
        for number in range(size):
            try:
                found.append(self._responses({name: values[number] for name, values in rows.items()}, chosen))
            except FitnessError as error:
                found.append(error)
        return found

    def _chosen(self, items: Sequence[str]) -> _Chosen:
        """Return the items of these ids, in the order of the data.

        Raises:
            FitnessError: the function declares no such item.
        """
        if items != self._asked[0]:
            unknown = [item for item in items if item not in self._items]
            if unknown:
                raise FitnessError(f"function {self.key!r} declares no item {unknown[0]!r}; have its items changed?")
            found = sorted({self._items[item] for item in items}, key=lambda item: item.index)
            self._asked = (items, _Chosen(tuple(found), tuple(item.id for item in found), [item.doc for item in found]))
        return self._asked[1]

    def _call(self, chosen: _Chosen, *models: Any) -> Any:
        arguments = {"items": list(chosen.texts)} if self._declares_items else {}
        try:
            return self._function(*models, **arguments)
        except Exception as error:
            lines = "".join(traceback.format_exception(error))
            raise FitnessError(f"function {self.key!r} raised {type(error).__name__}: {error}\n{lines}") from error

    def _responses(self, result: Any, chosen: _Chosen) -> TaskResponses:
        named = result if isinstance(result, Mapping) else {DEFAULT_METRIC: result}
        values = {f"{name},none": self._numbers(name, value, chosen.items) for name, value in named.items()}
        return TaskResponses(chosen.ids, values)

    def _declared(self, declared: Declared, confirmation_share: float) -> Pools:
        if not isinstance(declared, Mapping):
            texts = [str(text) for text in declared]
            if len(texts) < 2:
                raise FitnessError(
                    f"function {self.key!r} declares {len(texts)} items; at least 2 are needed to split them"
                )
            return split_by_hash(_items(texts), confirmation_share)
        if set(declared) != set(SPLITS) or not all(declared.values()):
            raise FitnessError(
                f"function {self.key!r} declares items for {', '.join(map(repr, declared))}; give a list, or a mapping "
                f"with items for each of {' and '.join(map(repr, SPLITS))}"
            )
        searched = len(declared["search"])
        items = _items([str(text) for split in SPLITS for text in declared[split]])
        return separate(items[:searched], items[searched:])

    def _numbers(self, name: str, value: Any, items: Sequence[Item]) -> list[Value]:
        values = _listed(value) if self._declares_items else [value]
        try:
            numbers = list(map(float, values))
        except (TypeError, ValueError) as error:
            raise FitnessError(f"function {self.key!r} returned {value!r} for {name!r}, not numbers") from error
        if len(numbers) != len(items):
            raise FitnessError(f"function {self.key!r} returned {len(numbers)} numbers for {len(items)} items")
        if not all(map(math.isfinite, numbers)):
            raise FitnessError(f"function {self.key!r} returned a number that is not finite for {name!r}")
        return [*numbers]


def _items(texts: Sequence[str]) -> tuple[Item, ...]:
    made = make_items((text, content_hash(text)) for text in texts)
    return tuple(replace(item, question=question_hash(item.doc)) for item in made)


def _listed(value: Any) -> list[Any]:
    """Return a sequence, array or tensor as a list; the last two at once, as taking them number by number is slow."""
    return list(value.tolist() if hasattr(value, "tolist") else value)


def _bits(answer: TaskResponses | FitnessError) -> Any:
    """Return what is equal for equal responses, the sign of zero included; all errors are alike."""
    if isinstance(answer, FitnessError):
        return None
    return {key: [repr(value) for value in values] for key, values in answer.values.items()}


def _form(function: Callable[..., Any]) -> Form:
    """Return what a function takes, by its first parameter's name."""
    try:
        first = next(iter(inspect.signature(function).parameters), "model")
    except ValueError:  # no signature, as some functions written in C have none
        return "model"
    return "tensors" if first == "tensors" else "batch" if first == "batch" else "model"


def _load(reference: str, base_folder: Path | None) -> tuple[Callable[..., Any], Callable[[], Declared] | None]:
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
