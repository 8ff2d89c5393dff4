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
from typing import Any, Literal

import torch

from evomerge.errors import EvomergeError, MergeError
from evomerge.registry import Registry

Kind = Literal["elementwise", "tensor"]


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

    @property
    def keyword(self) -> str:
        """The name as a Python argument: ``lambda`` becomes ``lambda_``."""
        return f"{self.name}_" if keyword.iskeyword(self.name) else self.name


def switch(name: str, default: bool, description: str) -> Parameter:
    """Return a yes/no parameter of the whole merge, which no search varies unless told to."""
    return Parameter(name, default, 0, 1, per_model=False, searchable=False, description=description, kind="bool")


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
        kind: "elementwise" if each output number depends only on the input numbers at its place, "tensor"
            otherwise.
        randomised: it draws random numbers, from ``seeds``.
        min_models: fewest models, the base included.
        max_models: most models, the base included; None for any number.
        prepare: computes what depends on the parents alone and is worth keeping between merges.
        ignored: parameters that recipes may set because mergekit's method takes them, and that change no
            number.
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
    ignored: tuple[str, ...] = ()

    def __call__(
        self,
        tensors: Sequence[torch.Tensor],
        base: torch.Tensor | None = None,
        *,
        seeds: Sequence[int] | None = None,
        prepared: Any = None,
        **values: Any,
    ) -> torch.Tensor:
        """Merge one tensor of several models.

        Args:
            tensors: one tensor per model, the base excepted when ``needs_base``; equal shapes and dtypes. The
                dtype is the one that the merge is computed for.
            base: the base's tensor, for methods that need one.
            seeds: for randomised methods, one integer per tensor.
            prepared: what `prepared_for` returned for the same tensors; computed here if left out.
            values: parameters by recipe name; those of a model as a sequence, or one number for all.

        Returns:
            The merged tensor, float32 or the dtype of the inputs. It may be one of the inputs: do not write
            into it.

        Raises:
            MergeError: a parameter is unknown or missing, or the numbers have no meaning.
        """
        arguments = self._arguments(values, len(tensors))
        if self.prepare is not None:
            ready = self.prepared_for(tensors, base, seeds) if prepared is None else prepared
            arguments["prepared"] = ready
        return self.function(tensors, base, **arguments)

    def prepared_for(
        self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None, seeds: Sequence[int] | None = None
    ) -> Any:
        """Return what depends on the parents (and seeds) alone; None if the method prepares nothing."""
        if self.prepare is None:
            return None
        return self.prepare(tensors, base, seeds) if self.randomised else self.prepare(tensors, base)

    def parameter(self, name: str) -> Parameter:
        """Return the parameter called ``name``.

        Raises:
            KeyError: there is none.
        """
        return {parameter.name: parameter for parameter in self.parameters}[name]

    def _arguments(self, values: Mapping[str, Any], count: int) -> dict[str, Any]:
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


METHODS: Registry[MergeMethod] = Registry(
    "merge method",
    modules=(
        "evomerge.merging.methods.linear",
        "evomerge.merging.methods.slerp",
        "evomerge.merging.methods.task_arithmetic",
        "evomerge.merging.methods.ties",
        "evomerge.merging.methods.dare",
        "evomerge.merging.methods.passthrough",
    ),
)


def merge_method(
    name: str, *, parameters: tuple[Parameter, ...], **registration: Any
) -> Callable[[Callable[..., torch.Tensor]], MergeMethod]:
    """Register the decorated function as a merge method.

    The function takes ``(tensors, base, *, <one keyword per parameter>)``, in the order and with the names of
    ``parameters``; parameters of a model arrive as a sequence beside ``tensors``, ``lambda`` as ``lambda_``.
    With ``prepare=`` it takes ``prepared`` too, the result of ``prepare(tensors, base)`` (``prepare(tensors,
    base, seeds)`` if randomised). It must not write into its inputs and must return a new tensor, or an input
    unchanged.

    Raises:
        EvomergeError: the function's arguments and ``parameters`` disagree; names the function and its file.
    """

    def register(function: Callable[..., torch.Tensor]) -> MergeMethod:
        method = MergeMethod(name=name, function=function, parameters=parameters, **registration)
        expected = [
            "tensors",
            "base",
            *(["prepared"] if method.prepare else []),
            *(p.keyword for p in parameters),
        ]
        found = list(inspect.signature(function).parameters)
        if sorted(found) != sorted(expected):
            raise EvomergeError(
                f"merge method {name!r}: {function.__qualname__} in {inspect.getsourcefile(function)} "
                f"takes {found}, its registration says {expected}"
            )
        METHODS.add(name, method, origin=function.__module__)
        return method

    return register
