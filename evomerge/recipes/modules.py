"""Recipes for models of several modules (``modules:``), planned as one plain recipe for each module.

Which tensors a module has is told by the beginnings of their names. mergekit lists them for each architecture; the
names of its modules and their beginnings are few, so one table of them serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.recipes.recipe import WHOLE, Recipe, as_plain

if TYPE_CHECKING:
    from evomerge.recipes.planning import PlannedTensor

Names = Mapping[str, Collection[str]]
Planner = Callable[[Recipe, Names], "tuple[PlannedTensor, ...]"]

BEGINNINGS: Mapping[str, tuple[str, ...]] = {
    "text_decoder": ("language_model.", "model.language_model.", "model.", "lm_head."),
    "vision_tower": ("vision_tower.", "model.vision_tower.", "visual.", "model.visual."),
    "vision_model": ("vision_model.", "model.vision_model."),
    "multi_modal_projector": (
        *("multi_modal_projector.", "model.multi_modal_projector."),
        *("visual.merger.", "model.visual.merger.", "model.visual.deepstack_merger_list."),
    ),
    "encoder": ("encoder.", "model.encoder."),
    "decoder": ("decoder.", "model.decoder."),
    "shared": ("shared.", "model.shared.", "lm_head."),
}


def plan_modules(recipe: Recipe, tensor_names: Names, planner: Planner) -> tuple[PlannedTensor, ...]:
    """Return every output tensor of a recipe with ``modules``, module by module in the recipe's order.

    Slices are counted through: ``slice_index`` goes on where the module before ended (see `resolve_parameter`).

    Args:
        tensor_names: model reference → names of its tensors, for every model in ``recipe.parents()``.
        planner: plans a plain recipe.

    Raises:
        ConfigError: a module that the models do not have, tensors that belong to none of the recipe's modules, or
            what ``planner`` refuses.
    """
    modules = recipe.modules or {}
    every = sorted({name for names in tensor_names.values() for name in names})
    owner = owners(tuple(modules), every)
    if problems := [*_empty(modules, owner), *_forgotten(modules, owner)]:
        raise ConfigError(problems)
    planned: list[PlannedTensor] = []
    first = 0
    for name, module in modules.items():
        plain = as_plain(recipe, name)
        named = {model: [n for n in names if owner[n] == name] for model, names in tensor_names.items()}
        try:
            tensors = planner(plain, {model: named[model] for model in plain.parents()})
        except ConfigError as error:
            raise ConfigError([replace(p, what=f"module {name!r}: {p.what}") for p in error.problems]) from error
        planned += [replace(tensor, slice_index=tensor.slice_index + first) for tensor in tensors]
        first += len(module.slices or (module,))
    return tuple(planned)


def owners(modules: Collection[str], tensor_names: Collection[str]) -> dict[str, str]:
    """Return tensor → the module it belongs to: the one with the longest matching beginning.

    A name of the recipe's that the table lacks is itself a beginning, as in mergekit's inferred architectures.
    Where two modules have the same beginning, one of the recipe's goes before; ``default`` takes what is left.
    """
    known = {**BEGINNINGS, **{name: (name.rstrip(".") + ".",) for name in modules if name not in BEGINNINGS}}
    if WHOLE in modules:
        known = {name: beginnings for name, beginnings in known.items() if name in modules}
        known[WHOLE] = ("",)

    def belongs(tensor: str) -> str:
        fits = [(len(b), name in modules, name) for name, some in known.items() for b in some if tensor.startswith(b)]
        return max(fits, default=(0, False, ""))[2]

    return {tensor: belongs(tensor) for tensor in tensor_names}


def _empty(modules: Collection[str], owner: Mapping[str, str]) -> list[Problem]:
    present = set(owner.values()) - {""}
    what = "these models have no tensors of a module {!r}"
    missing = [name for name in modules if name not in present]
    return [Problem(what.format(name), f"modules.{name}", suggest(name, present)) for name in missing]


def _forgotten(modules: Collection[str], owner: Mapping[str, str]) -> list[Problem]:
    """mergekit leaves such tensors out of its output, which then does not load whole."""
    groups: dict[str, list[str]] = {}
    for tensor, module in owner.items():
        if module not in modules:
            groups.setdefault(module, []).append(tensor)
    return [
        Problem(
            f"{_count(tensors)} {f'the module {module!r}' if module else 'no known module'}, of which the recipe says "
            f"nothing, such as {tensors[0]}",
            "modules",
            f"add an entry {module!r}" if module else f"add an entry {WHOLE!r} for what is left",
        )
        for module, tensors in groups.items()
    ]


def _count(tensors: Collection[str]) -> str:
    return "1 tensor belongs to" if len(tensors) == 1 else f"{len(tensors)} tensors belong to"
