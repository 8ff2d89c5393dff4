"""Recipes written for mergekit: what it reads, with the same meaning, or a word on why that cannot be.

The table holds facts about mergekit 0.1.5: its methods, the parameters that each takes and those it insists on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.recipes import yaml
from evomerge.recipes.files import STAGE_BREAK, NamedRecipe, plain_data
from evomerge.recipes.recipe import FilteredValue, Recipe

_TASK_VECTORS = ("weight", "density", "normalize", "rescale", "lambda", "int8_mask")
METHODS: Mapping[str, tuple[str, ...]] = {
    "arcee_fusion": (),
    "breadcrumbs": (*_TASK_VECTORS, "gamma"),
    "breadcrumbs_ties": (*_TASK_VECTORS, "gamma"),
    "dare_linear": _TASK_VECTORS,
    "dare_ties": _TASK_VECTORS,
    "della": (*_TASK_VECTORS, "epsilon"),
    "della_linear": (*_TASK_VECTORS, "epsilon"),
    "karcher": ("max_iter", "tol"),
    "linear": ("weight", "normalize"),
    "model_stock": ("filter_wise",),
    "multislerp": ("weight", "normalize_weights", "eps"),
    "nearswap": ("t",),
    "nuslerp": ("weight", "nuslerp_row_wise", "nuslerp_flatten"),
    "passthrough": ("scale",),
    "ram": ("epsilon",),
    "ramplus_tl": ("r", "alpha", "epsilon"),
    "sce": ("select_topk", "int8_mask"),
    "slerp": ("t",),
    "task_arithmetic": _TASK_VECTORS,
    "ties": _TASK_VECTORS,
}
WHOLE_NUMBERS = ("max_iter",)
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
OURS = {
    "align": "mergekit does not align neurons; align the models first, or leave it out",
    "statistics": "mergekit has no methods that need data",
    "aim": "mergekit does not relax a merge towards the base",
    "outside": "mergekit takes embeddings from the first slice, final norm and head from the last",
}


def to_mergekit(recipe: Recipe, folders: Mapping[str, str] | None = None) -> str:
    """Return the recipe as a file that mergekit reads and that means the same there.

    Args:
        folders: reference → what mergekit is to call that model, for references that only we understand
            (``zoo/base``).

    Raises:
        ConfigError: mergekit has no such method or parameter, or not what a field of ours asks for; lists all of it.
    """
    return stages_to_mergekit([NamedRecipe(recipe)], folders)


def stages_to_mergekit(stages: Sequence[NamedRecipe], folders: Mapping[str, str] | None = None) -> str:
    """Return the stages as a file that mergekit's multi-stage tool reads; see `to_mergekit`."""
    problems = [
        replace(problem, where=f"{stage.title}: {problem.where}") if len(stages) > 1 else problem
        for stage in stages
        for problem in [*_method(stage.recipe), *_fields(stage.recipe)]
    ]
    if problems:
        raise ConfigError(problems)
    return STAGE_BREAK.join(_write(stage, folders) for stage in stages)


def _write(stage: NamedRecipe, folders: Mapping[str, str] | None) -> str:
    name = {"name": stage.name} if stage.name else {}
    data = plain_data(stage.recipe.model_copy(update={"seed": None}), folders)
    return _on_seed(stage.recipe) + yaml.dumps({**name, **data})


def _method(recipe: Recipe) -> Iterator[Problem]:
    if recipe.merge_method not in METHODS:
        hint = suggest(recipe.merge_method, METHODS)
        yield Problem(f"mergekit has no merge method {recipe.merge_method!r}", "merge_method", hint)
        return
    known = METHODS[recipe.merge_method]
    for where, parameters in _scopes(recipe):
        for name, setting in parameters.items():
            if name not in known:
                what = f"mergekit's {recipe.merge_method} has no parameter {name!r}, and would pass over it in silence"
                yield Problem(what, f"{where}.{name}", suggest(name, known))
            elif name in WHOLE_NUMBERS and not _whole(setting):
                yield Problem(f"mergekit takes a whole number for {name!r}, found {setting!r}", f"{where}.{name}")


def _whole(setting: Any) -> bool:
    """Whether a setting gives whole numbers everywhere; between the points of a gradient it does not."""
    if isinstance(setting, tuple):
        return all(isinstance(item, FilteredValue) and _whole(item.value) for item in setting)
    return isinstance(setting, (int, float)) and float(setting).is_integer()


def _fields(recipe: Recipe) -> Iterator[Problem]:
    for field, reason in OURS.items():
        if getattr(recipe, field) is not None:
            yield Problem(reason, field)
    for index, each in enumerate(recipe.slices or ()):
        if each.input_scale is not None:
            what = "mergekit does not scale hidden states; `evomerge merge` writes the model that does"
            yield Problem(what, f"slices[{index}].input_scale")


def _scopes(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for at, part in recipe.parts():
        for index, entry in enumerate(part.models or ()):
            yield f"{at}models[{index}].parameters", entry.parameters
        for index, each in enumerate(part.slices or ()):
            for number, source in enumerate(each.sources):
                yield f"{at}slices[{index}].sources[{number}].parameters", source.parameters
            yield f"{at}slices[{index}].parameters", each.parameters
        yield f"{at}parameters", part.parameters
    if recipe.modules:
        yield "parameters", recipe.parameters


def _on_seed(recipe: Recipe) -> str:
    if recipe.merge_method not in RANDOM:
        return ""
    seed = recipe.seed or 0
    return (
        f"# evomerge drops entries at random with seed {seed}. mergekit draws its own, even with\n"
        f"# `--random-seed {seed}`: as many entries are dropped, but others.\n"
    )
