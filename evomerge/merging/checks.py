"""Everything that can be known to be wrong with a recipe before merging it, read from headers and configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.merging import compatibility
from evomerge.merging.method import METHODS, MergeMethod, Parameter
from evomerge.merging.parents import Parents, Step
from evomerge.merging.tensors import missing_parameters
from evomerge.recipes import FilteredValue, Recipe

_SHOWN_SHAPES = 5


def check_recipe(recipe: Recipe, parents: Parents) -> list[Problem]:
    """Return every problem of the recipe on these parents; no weights are read.

    Unknown method or parameter, numbers that have no meaning, a missing base or parameter, too few or too
    many models, layers that do not exist, shapes or vocabularies that differ, models that do not fit
    together.
    """
    if recipe.merge_method not in METHODS:
        hint = suggest(recipe.merge_method, METHODS)
        return [Problem(f"unknown merge method {recipe.merge_method!r}", "merge_method", hint)]
    method = METHODS[recipe.merge_method]
    unknown = [reference for reference in recipe.parents() if reference not in parents.checkpoints]
    if unknown:
        opened = ", ".join(parents.checkpoints)
        return [Problem(f"{reference!r} is not among the parents: {opened}", "models") for reference in unknown]
    found = [*_parameters(recipe, method), *_base(recipe, method), *_tokenizer(recipe)]
    try:
        parents = parents.viewed(recipe)
        steps = parents.plan(recipe)
    except ConfigError as error:
        return [*found, *error.problems]
    found += [*_models(method, steps), *_missing(recipe, method, steps), *_shapes(steps, parents)]
    checkpoints = [parents[reference] for reference in recipe.parents()]
    found += compatibility.config_problems(checkpoints) + compatibility.tokenizer_problems(checkpoints)
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
    if not method.needs_base:
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
    if recipe.base_model is None and not all(bases):
        hint = "add the model that the others were fine-tuned from, as base_model"
        yield Problem(f"{method.name} needs a base model", "base_model", hint)


def _models(method: MergeMethod, steps: tuple[Step, ...]) -> Iterator[Problem]:
    for index, count in sorted({(step.planned.slice_index, len(step.planned.inputs)) for step in steps}):
        low, high = method.min_models, method.max_models
        if count < low or (high is not None and count > high):
            wanted = f"exactly {low}" if low == high else f"at least {low}" if high is None else f"at most {high}"
            what = f"{method.name} merges {wanted} models (a base counts), this recipe has {count}"
            yield Problem(what, f"slices[{index}]" if index else "models")


def _missing(recipe: Recipe, method: MergeMethod, steps: tuple[Step, ...]) -> Iterator[Problem]:
    for (name, model), tensors in missing_parameters(recipe, method, steps).items():
        whose = f" of {model}" if model else ""
        what = f"{method.name} needs the parameter {name!r}{whose}; it has no value for {len(tensors)} tensors"
        yield Problem(f"{what}, such as {tensors[0]}", "models" if model else "parameters", f"add {name}: 0.5")


def _shapes(steps: tuple[Step, ...], parents: Parents) -> list[Problem]:
    found: list[Problem] = []
    for step in steps:
        infos = {model: parents.info(model, name) for model, name in step.inputs.items()}
        found += compatibility.shape_problems(step.name, {m: info.shape for m, info in infos.items() if info})
        lacking = [entry.model for entry in step.planned.inputs if entry.model not in step.inputs]
        if lacking:
            what = f"tensor {step.name} is missing in {', '.join(lacking)}"
            hint = "merge models of one architecture, saved by the same library"
            found.append(Problem(what, lacking[0], hint))
    if len(found) > _SHOWN_SHAPES:
        rest = Problem(f"and {len(found) - _SHOWN_SHAPES} more tensors do not fit")
        found = [*found[:_SHOWN_SHAPES], rest]
    return found


def _tokenizer(recipe: Recipe) -> Iterator[Problem]:
    source = recipe.tokenizer.source if recipe.tokenizer else recipe.tokenizer_source
    if source is not None and source not in ("base", "union", *recipe.parents()):
        hint = suggest(source, ["base", "union", *recipe.parents()])
        yield Problem(f"the tokenizer source {source!r} is none of the recipe's models", "tokenizer_source", hint)
    if source == "base" and recipe.base_model is None:
        yield Problem("the tokenizer is to come from the base, but there is no base_model", "tokenizer_source")
    if recipe.tokenizer and (recipe.tokenizer.tokens or recipe.tokenizer.pad_to_multiple_of):
        yield Problem("tokens and pad_to_multiple_of are not supported yet", "tokenizer", "leave them out")
    if recipe.chat_template is not None and "{" not in recipe.chat_template:
        hint = "write the Jinja template itself, or leave it out to keep the tokenizer's own"
        yield Problem(f"chat_template {recipe.chat_template!r} is no template", "chat_template", hint)
