"""What a merge method is, and the table of all of them.

A method is one pure function from tensors and numbers to a tensor. Its registration says the rest: paper,
formula, parameters with the ranges worth searching, whether it needs a base. The engines, the checks of
recipes, the defaults of search spaces and the documentation are all read from there.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch

from evomerge.checkpoints import Factors
from evomerge.errors import EvomergeError, MergeError
from evomerge.merging.state import cut
from evomerge.registry import Registry

Kind = Literal["elementwise", "tensor", "matrix"]


@dataclass(frozen=True)
class Parameter:
    """One number of a merge method.

    Args:
        name: as it is written in recipes.
        default: its value when a recipe leaves it out; where a search starts if it is ``required``.
        low: lower end of the range worth searching.
        high: upper end of that range.
        per_model: one value for each model (the base excepted), else one for the merge.
        searchable: whether a search space makes a gene of it unless told otherwise.
        description: for people.
        kind: "float", or "bool" for a switch.
        required: a recipe must say it.
        minimum: smallest value that has a meaning, None for no limit.
        maximum: largest value that has a meaning, None for no limit.
        one_value: it speaks of the model as a whole, so a search has one gene for it and not one for each layer.
    """

    name: str
    default: float | bool
    low: float
    high: float
    per_model: bool
    searchable: bool
    description: str
    kind: Literal["float", "bool"] = "float"
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    one_value: bool = False

    @property
    def keyword(self) -> str:
        """The name as a Python argument: ``lambda`` becomes ``lambda_``."""
        return f"{self.name}_" if keyword.iskeyword(self.name) else self.name


def switch(name: str, default: bool, description: str) -> Parameter:
    """Return a yes/no parameter of the whole merge, which no search varies unless told to."""
    return Parameter(name, default, 0, 1, per_model=False, searchable=False, description=description, kind="bool")


class Place(NamedTuple):
    """Where in the merged model a tensor stands, for methods that ask for ``place``.

    ``layer`` is None outside the layers; ``num_layers`` counts the merged model's; ``depth`` is where gradients are
    read. ``offset`` counts the numbers of the model's tensors before this one, ``entries`` those of all; 0 if the
    tensor is all there is.
    """

    name: str
    layer: int | None
    num_layers: int
    depth: float
    offset: int = 0
    entries: int = 0


NOWHERE = Place("", None, 0, 0.0)
OFFERED = (
    "prepared",
    "reduced",
    "place",
    "statistics",
    "seeds",
    "sums",
    "factors",
)  # what functions get besides parameters, if they ask


@dataclass(frozen=True)
class MergeMethod:
    """A registered merge method; call it with tensors and parameters.

    Args:
        name: as it is written in recipes.
        function: ``function(tensors, base, *, <parameters>) -> Tensor``, see `merge_method`.
        summary: one line for tables.
        paper: author, year and link.
        formula: the definition in plain text.
        parameters: what a recipe may set.
        needs_base: the base is no input like the others; without one the method cannot work.
        kind: "elementwise" if each output number depends only on the input numbers at its place and on what
            ``prepare`` and ``reduce`` found out about the whole tensor: such tensors arrive flat and in chunks.
            "tensor" if it needs all numbers at once, "matrix" if rows and columns have a meaning.
        randomised: it draws random numbers, from ``seeds``.
        min_models: fewest models, a needed base included.
        max_models: most models, a needed base included; None for any number.
        prepare: ``prepare(tensors, base)`` computes what depends on the parents alone and is worth keeping between
            merges, as a state (see `evomerge.merging.state`).
        reduce: ``reduce(tensors, base, *, <some parameters>)`` computes, for one merge, what depends on the whole
            tensor and on the parameters: thresholds, norms. As a state too.
        summed: ``summed(tensors, base)`` returns numbers of one tensor of the parents. Added up over all tensors of the
            model they are offered as ``sums``, to methods that take the model as one long vector.
        statistics: kinds of statistics of each model's activations or gradients that it needs.
        ignored: parameters that recipes may set because mergekit's method takes them, and that change no
            number.
        fused: it calls compiled functions where a piece is long enough (see `evomerge.merging.fused`).
        others: for methods on matrices, what happens to vectors, embeddings and other tensors.
        ordered: the order of the models has a meaning.
        optional_base: a recipe's base, if it names one, is no input like the others either, but the method works
            without one.
        factored: a change that a LoRA adapter makes to the base reaches it as ``factors``, not in the tensors. Recipes
            are checked for adapters of one rank.
        cost: what a merge costs once prepared, in words.
    """

    name: str
    function: Callable[..., torch.Tensor]
    summary: str
    paper: str
    formula: str
    parameters: tuple[Parameter, ...]
    needs_base: bool
    kind: Kind
    randomised: bool = False
    min_models: int = 1
    max_models: int | None = None
    prepare: Callable[..., Any] | None = None
    reduce: Callable[..., Any] | None = None
    summed: Callable[..., Sequence[float]] | None = None
    statistics: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    fused: bool = False
    others: str = ""
    ordered: bool = False
    optional_base: bool = False
    factored: bool = False
    cost: str = "one pass over the parents"

    def __call__(
        self,
        tensors: Sequence[torch.Tensor],
        base: torch.Tensor | None = None,
        *,
        seeds: Sequence[int] | None = None,
        prepared: Any = None,
        place: Place = NOWHERE,
        statistics: Sequence[Mapping[str, torch.Tensor]] | None = None,
        sums: Sequence[float] | None = None,
        factors: Sequence[Factors | None] | None = None,
        chunk: int | None = None,
        **values: Any,
    ) -> torch.Tensor:
        """Merge one tensor of several models.

        Args:
            tensors: one tensor per model, the base excepted when ``takes_base``; equal shapes and dtypes. The
                dtype is the one that the merge is computed for.
            base: the base's tensor, for methods that take one.
            seeds: for randomised methods, one integer per tensor.
            prepared: what `prepared_for` returned for the same tensors; computed here if left out.
            place: where the tensor stands in the merged model.
            statistics: for methods that need them, kind → tensor for each of ``tensors``; a kind that was not
                gathered for this tensor is left out.
            sums: for methods that have ``summed``, its numbers of the whole model; of this tensor alone by default.
            factors: for methods that take them, the change to the base of each of ``tensors`` that is not in it.
            chunk: entries that elementwise methods see at once; all by default. Changes no number.
            values: parameters by recipe name; those of a model as a sequence, or one number for all.

        Returns:
            The merged tensor, float32 or the dtype of the inputs. It may be one of the inputs: do not write
            into it.

        Raises:
            MergeError: a parameter is unknown or missing, or the numbers have no meaning.
        """
        given: dict[str, Any] = {"seeds": seeds, "place": place, "statistics": statistics, "factors": factors}
        if self.summed is not None:
            given["sums"] = self.summed(tensors, base) if sums is None else sums
        if self.prepare is not None and prepared is None:
            prepared = self.prepared_for(tensors, base, **given)
        arguments = {**self.arguments(values, len(tensors)), **given, "prepared": prepared}
        if self.kind != "elementwise":
            return self.whole(tensors, base, arguments)
        shape, size = tensors[0].shape, tensors[0].numel()
        flat = [tensor.reshape(-1) for tensor in tensors]
        call = self.elementwise(flat, None if base is None else base.reshape(-1), arguments)
        step = chunk or max(size, 1)
        parts = [call(start, min(start + step, size)) for start in range(0, max(size, 1), step)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(shape)

    @property
    def takes_base(self) -> bool:
        """Whether a recipe's base is no input like the others."""
        return self.needs_base or self.optional_base

    def prepared_for(
        self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None, seeds: Any = None, **given: Any
    ) -> Any:
        """Return what depends on the parents (seeds, place, statistics) alone; None if it prepares nothing."""
        if self.prepare is None:
            return None
        given |= {"seeds": seeds, "shape": tensors[0].shape}
        if self.kind == "elementwise":
            tensors, base = [t.reshape(-1) for t in tensors], None if base is None else base.reshape(-1)
        return self.prepare(tensors, base, **_asked(self.prepare, given))

    def elementwise(
        self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None, arguments: Mapping[str, Any]
    ) -> Callable[[int, int], torch.Tensor]:
        """Return the function (start, stop) → merged entries of that stretch of flat tensors.

        Args:
            tensors: flat, one per model.
            base: flat, or None.
            arguments: parameters by keyword, and ``prepared``, ``place``, ``statistics``, ``seeds``.
        """
        reduced = self._reduced(tensors, base, arguments)
        asked = _asked(self.function, {**arguments, "reduced": reduced})
        states = {name: asked.pop(name) for name in ("prepared", "reduced", "statistics") if name in asked}

        def merge(start: int, stop: int) -> torch.Tensor:
            parts = [tensor[start:stop] for tensor in tensors]
            beginning = None if base is None else base[start:stop]
            return self.function(parts, beginning, **asked, **cut(states, start, stop))

        return merge

    def parameter(self, name: str) -> Parameter:
        """Return the parameter called ``name``.

        Raises:
            KeyError: there is none.
        """
        return {parameter.name: parameter for parameter in self.parameters}[name]

    def whole(
        self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None, arguments: Mapping[str, Any]
    ) -> torch.Tensor:
        """Return the merged tensor of a method that needs whole tensors; arguments as for `elementwise`."""
        reduced = self._reduced(tensors, base, arguments)
        return self.function(tensors, base, **_asked(self.function, {**arguments, "reduced": reduced}))

    def _reduced(self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None, arguments: Mapping[str, Any]) -> Any:
        return None if self.reduce is None else self.reduce(tensors, base, **_asked(self.reduce, arguments))

    def arguments(self, values: Mapping[str, Any], count: int) -> dict[str, Any]:
        """Return the parameters by keyword: defaults filled in, one value for each of ``count`` models.

        Raises:
            MergeError: a parameter is unknown or missing.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        if unknown := sorted(set(values) - set(known)):
            raise MergeError(f"{self.name} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
        arguments: dict[str, Any] = {}
        for name, parameter in known.items():
            if parameter.required and name not in values:
                raise MergeError(f"{self.name} needs the parameter {name!r}")
            value = values.get(name, parameter.default)
            if parameter.per_model and not isinstance(value, Sequence):
                value = [value] * count
            arguments[parameter.keyword] = value
        return arguments


def _asked(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the offered arguments that the function names."""
    return {name: offered[name] for name in _names(function) if name in offered}


@cache
def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


METHODS: Registry[MergeMethod] = Registry(
    "merge method",
    modules=(
        "evomerge.merging.methods.linear",
        "evomerge.merging.methods.slerp",
        "evomerge.merging.methods.task_arithmetic",
        "evomerge.merging.methods.ties",
        "evomerge.merging.methods.dare",
        "evomerge.merging.methods.passthrough",
        "evomerge.merging.methods.arcee_fusion",
        "evomerge.merging.methods.breadcrumbs",
        "evomerge.merging.methods.della",
        "evomerge.merging.methods.karcher",
        "evomerge.merging.methods.model_stock",
        "evomerge.merging.methods.multislerp",
        "evomerge.merging.methods.nearswap",
        "evomerge.merging.methods.nuslerp",
        "evomerge.merging.methods.ram",
        "evomerge.merging.methods.sce",
        "evomerge.merging.methods.fisher",
        "evomerge.merging.methods.lm_cocktail",
        "evomerge.merging.methods.m2n2",
        "evomerge.merging.methods.mats",
        "evomerge.merging.methods.regmean",
        "evomerge.merging.methods.consensus",
        "evomerge.merging.methods.cycle_qd",
        "evomerge.merging.methods.evo_merging",
        "evomerge.merging.methods.isotropic",
        "evomerge.merging.methods.layer_swap",
        "evomerge.merging.methods.magmax",
        "evomerge.merging.methods.opcm",
        "evomerge.merging.methods.pcb",
        "evomerge.merging.methods.task_singular_vectors",
    ),
)


def merge_method(
    name: str, *, parameters: tuple[Parameter, ...], **registration: Any
) -> Callable[[Callable[..., torch.Tensor]], MergeMethod]:
    """Register the decorated function as a merge method.

    The function takes ``(tensors, base, *, <one keyword per parameter>)``, in the order and with the names of
    ``parameters``; parameters of a model arrive as a sequence beside ``tensors``, ``lambda`` as ``lambda_``. Besides
    it may name ``prepared`` and ``reduced`` (what the registered functions of these names returned), ``place`` (a
    `Place`), ``statistics`` (one mapping kind → tensor per model), ``seeds`` (one integer per model), ``factors`` (of
    each model a `Factors` or None; None where there are none at all) and ``sums`` (what ``summed`` returned of all
    tensors, added up). ``prepare`` takes ``(tensors, base)`` and, if it names them, ``seeds``, ``place``,
    ``statistics`` and ``shape`` (of tensors that arrive flat); ``reduce`` the first three, ``prepared``, ``sums`` and
    any parameter. None may write into its inputs; the function must return a new tensor, or an input unchanged.

    Raises:
        EvomergeError: the function's arguments and ``parameters`` disagree; names the function and its file.
    """

    def register(function: Callable[..., torch.Tensor]) -> MergeMethod:
        method = MergeMethod(name=name, function=function, parameters=parameters, **registration)
        expected = ["tensors", "base", *(p.keyword for p in parameters)]
        found = list(inspect.signature(function).parameters)
        if sorted(set(found) - set(OFFERED)) != sorted(expected):
            raise EvomergeError(
                f"merge method {name!r}: {function.__qualname__} in {inspect.getsourcefile(function)} "
                f"takes {found}, its registration says {expected}"
            )
        METHODS.add(name, method, origin=function.__module__)
        return method

    return register
