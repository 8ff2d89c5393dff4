"""Random recipes that use everything recipes can say: filters, gradients, slices, switches, dtypes.

They are for comparisons with other implementations, where every field must mean the same to both.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.recipes import Recipe

DTYPES = ("float32", "bfloat16", "float16")


def random_recipe(
    method: str, paths: Mapping[str, Path], layers: int, draw: random.Random, filters: Sequence[str]
) -> Recipe:
    """Return a valid recipe of ``method`` over some of the models.

    Args:
        method: "linear", "slerp", "task_arithmetic", "ties" or "passthrough".
        paths: the models' folders by name; one is "base".
        layers: how many layers each of them has.
        draw: where the random numbers come from.
        filters: parts of tensor names to filter by.
    """
    models = {name: str(path) for name, path in paths.items()}
    build = {"passthrough": _stack, "slerp": _slerp}.get(method, _mixture)
    fields = {"merge_method": method, **build(method, models, layers, draw, filters)}
    if draw.random() < 0.5:
        fields["dtype"] = draw.choice(DTYPES)
    if draw.random() < 0.25:
        fields["out_dtype"] = draw.choice(DTYPES)
    return Recipe.model_validate(fields)


def _number(draw: random.Random, low: float, high: float) -> float:
    return round(draw.uniform(low, high), 3)


def _setting(draw: random.Random, low: float, high: float, layers: int, filters: Sequence[str]) -> Any:
    """Return a number, a gradient over the layers, or a list of filtered ones that covers every tensor."""

    def gradient() -> list[float]:
        return [_number(draw, low, high) for _ in range(draw.choice([2, 3, layers, 5]))]

    kind = draw.random()
    if kind < 0.4:
        return _number(draw, low, high)
    if kind < 0.65:
        return gradient()
    filtered = [
        {"filter": text, "value": draw.choice([_number(draw, low, high), gradient()])}
        for text in draw.sample(list(filters), 2)
    ]
    rest = {"value": _number(draw, low, high)} if draw.random() < 0.7 else {"filter": "*", "value": gradient()}
    return [*filtered, rest]


def _stack(
    method: str, models: Mapping[str, str], layers: int, draw: random.Random, filters: Sequence[str]
) -> dict[str, Any]:
    slices = []
    for name in draw.sample(sorted(set(models) - {"base"}), 2):
        start = draw.randrange(layers - 1)
        source: dict[str, Any] = {"model": models[name]}
        source["layer_range"] = [start, draw.randrange(start + 1, layers + 1)]
        if draw.random() < 0.5:
            source["parameters"] = {"scale": _setting(draw, 0.2, 1.0, layers, filters)}
        slices.append({"sources": [source]})
    return {"slices": slices}


def _slerp(
    method: str, models: Mapping[str, str], layers: int, draw: random.Random, filters: Sequence[str]
) -> dict[str, Any]:
    other = draw.choice(sorted(set(models) - {"base"}))
    both = [models["base"], models[other]]
    draw.shuffle(both)
    fields: dict[str, Any] = {"base_model": models["base"]}
    fields["parameters"] = {"t": _setting(draw, 0.0, 1.0, layers, filters)}
    kind = draw.random()
    if kind < 0.3:
        sources = [{"model": model, "layer_range": [0, layers]} for model in both]
        return {**fields, "slices": [{"sources": sources}]}
    chosen = both if kind < 0.7 else [models[other]]
    return {**fields, "models": [{"model": model} for model in chosen]}


def _mixture(
    method: str, models: Mapping[str, str], layers: int, draw: random.Random, filters: Sequence[str]
) -> dict[str, Any]:
    parents = sorted(set(models) - {"base"})
    names = draw.sample(parents, draw.randint(1, len(parents)))
    entries = [_entry(method, models[name], layers, draw, filters) for name in names]
    parameters: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    if draw.random() < 0.5:
        parameters["normalize"] = draw.random() < 0.5
    if method == "linear":
        if draw.random() < 0.3:  # the base is then an input like the others, with the recipe's own weight
            fields["base_model"], parameters["weight"] = models["base"], _number(draw, 0.1, 1.0)
        return {**fields, "models": entries, "parameters": parameters}
    fields["base_model"] = models["base"]
    parameters |= {"lambda": _number(draw, 0.3, 1.5)} if draw.random() < 0.5 else {}
    parameters |= {"int8_mask": True} if draw.random() < 0.3 else {}
    if method == "ties" and draw.random() < 0.3:
        parameters |= {"rescale": True, "density": _setting(draw, 0.1, 1.0, layers, filters)}
    if draw.random() < 0.3:
        entries.insert(draw.randrange(len(entries) + 1), {"model": models["base"]})
    if draw.random() < 0.25:
        return {**fields, "slices": _halves(entries, models["base"], layers, draw), "parameters": parameters}
    return {**fields, "models": entries, "parameters": parameters}


def _entry(method: str, model: str, layers: int, draw: random.Random, filters: Sequence[str]) -> dict[str, Any]:
    low = -0.2 if draw.random() < 0.2 else 0.05
    parameters = {"weight": _setting(draw, low, 1.2, layers, filters)}
    if method == "ties" and draw.random() < 0.7:
        parameters["density"] = _setting(draw, 0.02, 1.0, layers, filters)
    return {"model": model, "parameters": parameters}


def _halves(entries: list[dict[str, Any]], base: str, layers: int, draw: random.Random) -> list[dict[str, Any]]:
    """Return the same merge as two slices, at times with another factor in one of them."""
    if base not in [entry["model"] for entry in entries]:
        entries = [*entries, {"model": base}]
    middle = draw.randrange(1, layers)
    slices: list[dict[str, Any]] = []
    for span in ([0, middle], [middle, layers]):
        part: dict[str, Any] = {"sources": [{**entry, "layer_range": span} for entry in entries]}
        if draw.random() < 0.4:
            part["parameters"] = {"lambda": _number(draw, 0.5, 1.2)}
        slices.append(part)
    return slices
