"""Everything that can be known to be wrong with a recipe before merging it, read from headers and configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from evomerge.errors import ConfigError, MergeError, Problem, suggest
from evomerge.merging import compatibility
from evomerge.merging.depths import depth_problems
from evomerge.merging.method import METHODS, MergeMethod, Parameter
from evomerge.merging.optional import missing_problems, surplus_problems
from evomerge.merging.parents import Parents, Step
from evomerge.merging.paths import path_problems
from evomerge.merging.ranks import rank_problems
from evomerge.merging.statistics import recipe_problems
from evomerge.merging.tensors import absentees, missing_parameters, recipe_of
from evomerge.merging.tokenizer_files import template_problems
from evomerge.merging.vocabulary import settings_of
from evomerge.recipes import FilteredValue, Recipe

_SHOWN_SHAPES = 5


def check_recipe(recipe: Recipe, parents: Parents) -> list[Problem]:
    """Return every problem of the recipe on these parents; no weights are read.

    Unknown method or parameter, numbers that have no meaning, a missing base or parameter, too few or too
    many models, layers that do not exist, shapes or vocabularies that differ, models that do not fit
    together.
    """
    own = [(at, part) for at, part in (("", recipe), ("outside.", recipe.outer)) if part is not None]
    for at, part in own:
        if part.merge_method not in METHODS:
            hint = suggest(part.merge_method, METHODS)
            return [Problem(f"unknown merge method {part.merge_method!r}", f"{at}merge_method", hint)]
    unknown = [reference for reference in recipe.parents() if reference not in parents.checkpoints]
    if unknown:
        opened = ", ".join(parents.checkpoints)
        return [Problem(f"{reference!r} is not among the parents: {opened}", "models") for reference in unknown]
    found = [*_tokenizer(recipe, parents)]
    for at, part in own:
        method = METHODS[part.merge_method]
        found += [replace(p, where=f"{at}{p.where}") for p in (*_parameters(part, method), *_base(part, method))]
    raw = parents
    try:
        parents = parents.viewed(recipe)
        steps = parents.plan(recipe)
    except ConfigError as error:
        return [*found, *error.problems]
    for at, part in own:
        method = METHODS[part.merge_method]
        theirs = tuple(step for step in steps if recipe_of(recipe, step) == part)
        found += [
            replace(p, where=f"{at}{p.where}")
            for p in (
                *_models(method, theirs),
                *_missing(part, method, theirs),
                *rank_problems(method, theirs, parents),
            )
        ]
    found += _tensors(recipe, steps, parents)
    found += depth_problems(recipe, parents)
    found += path_problems(recipe, parents)
    checkpoints = [parents[reference] for reference in recipe.parents()]
    found += compatibility.config_problems(checkpoints)
    found += recipe_problems(recipe, raw.checkpoints, parents.checkpoints)
    return list(dict.fromkeys(found))


def _scopes(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield (where, parameters, whether they are one model's)."""
    for at, part in recipe.parts():
        for index, entry in enumerate(part.models or ()):
            yield f"{at}models[{index}].parameters", entry.parameters, True
        for index, each in enumerate(part.slices or ()):
            for number, source in enumerate(each.sources):
                yield f"{at}slices[{index}].sources[{number}].parameters", source.parameters, True
            yield f"{at}slices[{index}].parameters", each.parameters, False
        yield f"{at}parameters", part.parameters, False
    if recipe.modules:
        yield "parameters", recipe.parameters, False


def _parameters(recipe: Recipe, method: MergeMethod) -> Iterator[Problem]:
    known = {parameter.name: parameter for parameter in method.parameters}
    for where, parameters, of_a_model in _scopes(recipe):
        for name, setting in parameters.items():
            if name in method.ignored:
                continue
            if name not in known:
                what = f"{method.name} has no parameter {name!r}"
                yield Problem(what, f"{where}.{name}", suggest(name, known))
            elif of_a_model and not known[name].per_model:
                what = f"{name!r} belongs to the merge as a whole; set for one model it has no effect"
                yield Problem(what, f"{where}.{name}", "move it to the recipe's own `parameters`")
            else:
                yield from _range(known[name], setting, f"{where}.{name}")


def _range(parameter: Parameter, setting: Any, where: str) -> Iterator[Problem]:
    low = float("-inf") if parameter.minimum is None else parameter.minimum
    high = float("inf") if parameter.maximum is None else parameter.maximum
    for value in _numbers(setting):
        if isinstance(value, str):
            yield Problem(f"{parameter.name} is a number, found {value!r}", where)
        elif not low <= value <= high:
            yield Problem(f"{parameter.name} is {value}, outside [{low:g}, {high:g}]", where)


def _numbers(setting: Any) -> Iterator[Any]:
    if isinstance(setting, FilteredValue):
        yield from _numbers(setting.value)
    elif isinstance(setting, tuple):
        for item in setting:
            yield from _numbers(item)
    else:
        yield setting


def _base(recipe: Recipe, method: MergeMethod) -> Iterator[Problem]:
    if not method.takes_base:
        return
    slices = [
        (f"{at}slices[{index}]", each) for at, part in recipe.parts() for index, each in enumerate(part.slices or ())
    ]
    for at, each in slices:
        base = each.base_model or recipe.base_model
        if base is not None and base not in [source.model for source in each.sources]:
            what = f"the base {base!r} is not among the sources of this slice"
            yield Problem(what, f"{at}.sources", "add it, with the layers that the others start from")
    unsaid = any(part.models for _, part in recipe.parts())
    bases = [None] if unsaid else [each.base_model for _, each in slices]
    if method.needs_base and recipe.base_model is None and not all(bases):
        hint = "add the model that the others were fine-tuned from, as base_model"
        yield Problem(f"{method.name} needs a base model", "base_model", hint)


def _models(method: MergeMethod, steps: tuple[Step, ...]) -> Iterator[Problem]:
    for index, count in sorted({(step.planned.slice_index, _count(method, step)) for step in steps}):
        low, high = method.min_models, method.max_models
        if count < low or (high is not None and count > high):
            wanted = f"exactly {low}" if low == high else f"at least {low}" if high is None else f"at most {high}"
            base = "beside the base" if method.optional_base else "(a base counts)"
            what = f"{method.name} merges {wanted} models {base}, this recipe has {count}"
            yield Problem(what, f"slices[{index}]" if index else "models")


def _count(method: MergeMethod, step: Step) -> int:
    models = [entry.model for entry in step.planned.inputs]
    return len(models) - (method.optional_base and step.planned.base in models)


def _missing(recipe: Recipe, method: MergeMethod, steps: tuple[Step, ...]) -> Iterator[Problem]:
    for (name, model), tensors in missing_parameters(recipe, method, steps).items():
        whose = f" of {model}" if model else ""
        what = f"{method.name} needs the parameter {name!r}{whose}; it has no value for {len(tensors)} tensors"
        yield Problem(f"{what}, such as {tensors[0]}", "models" if model else "parameters", f"add {name}: 0.5")


def _tensors(recipe: Recipe, steps: tuple[Step, ...], parents: Parents) -> list[Problem]:
    """Return the tensors that are missing, out of place or of another shape, a few of them if there are many."""
    found = surplus_problems(recipe, parents.checkpoints, parents.surplus(recipe), parents.has)
    for step in steps:
        method = METHODS[recipe_of(recipe, step).merge_method]
        found += missing_problems(method, (step,), parents.checkpoints)
        if step.misfits:
            base = str(step.planned.base)
            inputs = {base: step.inputs[base], **step.inputs} if base in step.inputs else step.inputs
            infos = {model: parents.info(model, name) for model, name in inputs.items()}
            fitting = {model: info.shape for model, info in infos.items() if info and model not in step.misfits}
            others = {model: info.shape for model, info in infos.items() if info and model in step.misfits}
            for model in _absentees(recipe_of(recipe, step), method, step):
                del others[model]
            found += compatibility.shape_problems(step.name, fitting | others)
    if len(found) > _SHOWN_SHAPES:
        rest = Problem(f"and {len(found) - _SHOWN_SHAPES} more tensors do not fit")
        found = [*found[:_SHOWN_SHAPES], rest]
    return found


def _absentees(recipe: Recipe, method: MergeMethod, step: Step) -> frozenset[str]:
    try:
        return absentees(recipe, method, step)
    except MergeError:  # a parameter is missing, which is told elsewhere
        return frozenset()


def _tokenizer(recipe: Recipe, parents: Parents) -> list[Problem]:
    """Return what is wrong with the vocabulary that is asked for; whether it can be had, its view says."""
    found = template_problems(recipe, parents.checkpoints)
    if settings_of(recipe) is None:
        found += compatibility.tokenizer_problems([parents[reference] for reference in recipe.parents()])
    return found
