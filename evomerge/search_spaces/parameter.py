"""The parameter space: the parameters of one merge method, searched layer by layer and group by group.

This is the "parameter space" of Akiba et al. 2024, Evolutionary Optimization of Model Merging Recipes
(https://arxiv.org/abs/2403.13187), for any method in `evomerge.merging`. The method's declaration says which
parameters there are and between which values they are searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evomerge.errors import ConfigError, Problem, UnknownNameError
from evomerge.recipes import Recipe, count_layers
from evomerge.search_spaces.base import SEARCH_SPACES, ParentsInfo, SearchSpaceKind, check_genome
from evomerge.search_spaces.gene_patterns import GeneTable
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, Gene, Genome, Value
from evomerge.search_spaces.groups import assign_groups
from evomerge.search_spaces.layout import Layout, lay_out
from evomerge.search_spaces.parameter_config import ParameterSpaceConfig
from evomerge.search_spaces.simplex import even_share, weights_of

if TYPE_CHECKING:
    from evomerge.merging.method import MergeMethod, Parameter

BOOLEANS = ("false", "true")
WEIGHT = "weight"
SHARE = "share"  # of a parent, where the weights are a point of the simplex


@dataclass(frozen=True)
class _Slot:
    """One parameter of one parent, or (without ``nickname``) of the merge, and its place in the recipe."""

    parameter: Parameter
    nickname: str | None
    layout: Layout

    @cached_property
    def genes(self) -> dict[str, str]:
        """Cell of the layout → name of its gene."""
        before = [word for word in (self.nickname, self.parameter.name) if word]
        return {cell: ".".join([*before, cell] if cell else before) for cell in self.layout.cells}


class ParameterSpace:
    """A search space over the parameters of one merge method.

    Args:
        config: as read from a file.
        method: the method's registration.
        info: the models.

    Raises:
        ConfigError: the configuration does not fit the method or the models; lists every problem.
    """

    def __init__(self, config: ParameterSpaceConfig, method: MergeMethod, info: ParentsInfo) -> None:
        problems = [*_check_models(method, info), *_check_fixed(config, method), *_check_weights(config, method, info)]
        if problems:
            raise ConfigError(problems)
        self._method, self._info, self._base = method, info, _base(method, info)
        self._slots = tuple(_slots(config, method, info))
        self._shared = config.weights == "simplex"
        searched = _with_shares(self._slots, tuple(info.parents)) if self._shared else self._slots
        table = GeneTable(
            {gene: slot.parameter for slot in searched for gene in _genes(slot, tuple(info.parents))},
            [_share(p) if self._shared and p.name == WEIGHT else p for p in method.parameters],
        )
        self.genes, self._constants = table.apply(config.bounds, config.fixed)
        if self._shared:
            _check_shares(self._constants)
        names = {parameter.name for parameter in method.parameters}
        self._global = {name: value for name, value in config.fixed.items() if name in names}

    def express(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome: per-layer gradients under filters, in mergekit's fields.

        Raises:
            EvomergeError: a gene is missing or unknown.
        """
        check_genome(self.genes, genome)
        values = {**self._constants, **genome}
        if self._shared:
            values |= self._weights(values)
        own: dict[str | None, dict[str, Any]] = {nickname: {} for nickname in (None, *self._info.parents)}
        own[None] |= self._global
        for slot in self._slots:
            own[slot.nickname][slot.parameter.name] = _setting(slot, values)
        fields = {
            "merge_method": self._method.name,
            "base_model": self._base,
            "models": [
                {"model": reference, "parameters": own[nickname]} for nickname, reference in self._info.parents.items()
            ],
            "parameters": own[None],
            "dtype": self._info.dtype,
            **self._info.common,
        }
        return Recipe.model_validate(fields)

    def starting_points(self) -> list[Genome]:
        """Return the method's uniform merge: equal weights that sum to one, all else at its default.

        Of a simplex, after that, each parent alone, as far as bounds and fixed values allow.
        """
        uniform = {gene.name: gene.initial for gene in self.genes}
        alone = [self._alone(nickname) for nickname in self._info.parents] if self._shared else []
        limits = {gene.name: (gene.low, gene.high) for gene in self.genes if isinstance(gene, FloatGene)}
        limits |= {name: (float(value), float(value)) for name, value in self._constants.items() if _is_share(name)}
        allowed = [
            {name: share for name, share in shares.items() if name in uniform}
            for shares in alone
            if all(limits[name][0] <= share <= limits[name][1] for name, share in shares.items())
        ]
        return [uniform, *({**uniform, **shares} for shares in allowed)]

    def _weights(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return the parents' weights, by the names that genes of them would have, from their shares."""
        slots = [slot for slot in self._slots if _is_weight(slot)]
        shared = [_share_of(slot).genes for slot in slots[:-1]]
        weights: dict[str, Value] = {}
        for cell in slots[0].layout.cells:
            shares = [float(values[genes[cell]]) for genes in shared]
            weights |= zip((slot.genes[cell] for slot in slots), weights_of(shares), strict=True)
        return weights

    def _alone(self, nickname: str) -> dict[str, float]:
        """Return the shares that leave nothing to any other parent; those behind it have none to take from."""
        slots = [slot for slot in self._slots if _is_weight(slot)]
        last = [slot.nickname for slot in slots].index(nickname)
        return {
            gene: float(slot.nickname == nickname)
            for slot in slots[: min(last + 1, len(slots) - 1)]
            for gene in _share_of(slot).genes.values()
        }


def build(config: ParameterSpaceConfig, info: ParentsInfo) -> ParameterSpace:
    """Return the parameter space of a configuration over the given models.

    Raises:
        ConfigError: unknown method, or the configuration does not fit method or models.
    """
    from evomerge.merging.method import METHODS  # heavy: loads torch

    try:
        method = METHODS[config.method]
    except UnknownNameError as error:
        raise ConfigError(Problem(str(error), "search_space.method")) from error
    return ParameterSpace(config, method, info)


SEARCH_SPACES.add(
    "parameter",
    SearchSpaceKind(ParameterSpaceConfig, build, "the parameters of one merge method, per layer and tensor group"),
    origin=__name__,
)


def _between_two(method: MergeMethod, info: ParentsInfo) -> bool:
    """Whether the parents alone are all the models the method takes (slerp): the first is then the base."""
    return method.needs_base and len(info.parents) == method.max_models


def _base(method: MergeMethod, info: ParentsInfo) -> str | None:
    if not method.takes_base:
        return None
    return next(iter(info.parents.values())) if _between_two(method, info) else info.base


def _check_models(method: MergeMethod, info: ParentsInfo) -> Iterator[Problem]:
    base = _base(method, info)
    if method.needs_base and base is None:
        yield Problem(f"{method.name} needs a base model", "search_space.method", "name it: base: MODEL")
    own_base = base is not None and not _between_two(method, info)
    count = len(info.parents) + (own_base and method.needs_base)
    if count < method.min_models or count > (method.max_models or count):
        models = ", ".join([*info.parents, *(["base"] if own_base else [])])
        yield Problem(
            f"{method.name} takes {_range(method)}, these are {count}: {models}",
            "search_space.method",
            "name other parents, or use another method",
        )
    references = list(info.parents.values())
    for nickname, reference in info.parents.items():
        if references.index(reference) != list(info.parents).index(nickname):
            yield Problem(f"{reference!r} is a parent twice", f"parents.{nickname}", "remove one of them")
        elif own_base and reference == base:
            yield Problem(
                f"{reference!r} is a parent and the base as well, so its task vector is zero",
                f"parents.{nickname}",
                "remove it from the parents",
            )


def _range(method: MergeMethod) -> str:
    if method.max_models is None:
        return f"{method.min_models} or more models"
    if method.min_models == method.max_models:
        return "one model" if method.min_models == 1 else f"exactly {method.min_models} models"
    return f"{method.min_models} to {method.max_models} models"


def _check_fixed(config: ParameterSpaceConfig, method: MergeMethod) -> Iterator[Problem]:
    for parameter in method.parameters:
        value = config.fixed.get(parameter.name)
        if value is not None and (parameter.kind == "bool") != isinstance(value, bool):
            wanted = "true or false" if parameter.kind == "bool" else "a number"
            yield Problem(f"{parameter.name} is {wanted}, found {value!r}", f"search_space.fixed.{parameter.name}")


def _check_weights(config: ParameterSpaceConfig, method: MergeMethod, info: ParentsInfo) -> Iterator[Problem]:
    if config.weights == "free":
        return
    if not any(parameter.name == WEIGHT and parameter.per_model for parameter in method.parameters):
        what = f"{method.name} has no weight for each model that could be a share of one"
        yield Problem(what, "search_space.weights", "use weights: free, or a method with weights, such as linear")
    elif len(info.parents) < 2:
        yield Problem("a single parent has nobody to share with", "search_space.weights", "name more parents")


def _check_shares(constants: Mapping[str, Value]) -> None:
    problems = [
        Problem(f"a share is a number from 0 to 1, found {value}", f"search_space.fixed.{name}")
        for name, value in constants.items()
        if _is_share(name) and (isinstance(value, str) or not 0 <= value <= 1)
    ]
    if problems:
        raise ConfigError(problems)


def _is_share(gene: str) -> bool:
    return SHARE in gene.split(".")[:2]


def _is_weight(slot: _Slot) -> bool:
    return slot.nickname is not None and slot.parameter.name == WEIGHT


def _share(weight: Parameter) -> Parameter:
    """Return the parameter that is searched in place of the weight."""
    return replace(weight, name=SHARE, low=0.0, high=1.0, minimum=0.0, maximum=1.0)


def _share_of(slot: _Slot) -> _Slot:
    return replace(slot, parameter=_share(slot.parameter))


def _with_shares(slots: Sequence[_Slot], parents: Sequence[str]) -> tuple[_Slot, ...]:
    """Return the slots with shares instead of weights; the last parent's weight is what the others leave."""
    return tuple(
        _share_of(slot) if _is_weight(slot) else slot
        for slot in slots
        if not (_is_weight(slot) and slot.nickname == parents[-1])
    )


def _slots(config: ParameterSpaceConfig, method: MergeMethod, info: ParentsInfo) -> Iterator[_Slot]:
    num_layers = count_layers(info.tensor_names)
    if config.smooth is not None and config.smooth > num_layers:
        raise ConfigError(
            Problem(
                f"of {config.smooth} points over {num_layers} layers some would have no effect",
                "search_space.smooth",
                f"use at most {num_layers} points",
            )
        )
    everything = {"": info.tensor_names}
    groups = assign_groups(info.tensor_names, config.groups) if config.groups else everything
    layout = lay_out(groups, config.granularity, config.smooth)
    everywhere = lay_out(everything, "global", None)
    for nickname in (*info.parents, None):
        for parameter in method.parameters:
            told = parameter.searchable or parameter.name in config.bounds
            if told and parameter.name not in config.fixed and parameter.per_model == (nickname is not None):
                whole = parameter.kind == "bool" or parameter.one_value
                yield _Slot(parameter, nickname, everywhere if whole else layout)


def _genes(slot: _Slot, parents: tuple[str, ...]) -> Iterator[Gene]:
    parameter = slot.parameter
    for cell in slot.layout.cells:
        if parameter.kind == "bool":
            yield ChoiceGene(slot.genes[cell], BOOLEANS, BOOLEANS[bool(parameter.default)])
        else:
            yield FloatGene(slot.genes[cell], float(parameter.low), float(parameter.high), _initial(slot, parents))


def _initial(slot: _Slot, parents: tuple[str, ...]) -> float:
    """Return a number's value in the uniform merge."""
    if slot.nickname is not None and slot.parameter.name == SHARE:
        return even_share(len(parents) - 1 - parents.index(slot.nickname))
    equal_weight = _is_weight(slot) and slot.parameter.required
    return 1.0 / len(parents) if equal_weight else float(slot.parameter.default)


def _setting(slot: _Slot, values: Genome) -> Any:
    """Return a parameter as it stands in a recipe: a value, a gradient, or a list of them with filters."""
    entries = [(entry.filter, _value(slot, entry.cells, values)) for entry in slot.layout.entries]
    if entries[0][0] is None:
        return entries[0][1]
    return [{"value": value} if text is None else {"filter": text, "value": value} for text, value in entries]


def _value(slot: _Slot, cells: tuple[str, ...], values: Genome) -> Any:
    if slot.parameter.kind == "bool":
        return values[slot.genes[cells[0]]] == BOOLEANS[True]
    points = [float(values[slot.genes[cell]]) for cell in cells]
    return points if len(points) > 1 else points[0]
