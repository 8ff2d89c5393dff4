"""Random recipes that use everything recipes can say: filters, gradients, slices, switches, dtypes.

They are for comparisons with other implementations, where every field must mean the same to both.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.recipes import Recipe

DTYPES = ("float32", "bfloat16", "float16")
Range = tuple[float, float]


class Shared(NamedTuple):
    """A method that mergekit has too, and what recipes of it may say.

    Args:
        models: fewest and most models beside the base.
        base: "needed", "optional", or "counts" if it is merged like the others.
        of_models: parameters of each model, with the range to draw from.
        of_merge: parameters of the merge.
        switches: yes/no parameters of the merge.
        required: parameters that a recipe must say.
    """

    models: tuple[int, int]
    base: str
    of_models: Mapping[str, Range] = {}
    of_merge: Mapping[str, Range] = {}
    switches: Sequence[str] = ()
    required: Sequence[str] = ("weight", "t")


_WEIGHT = {"weight": (0.05, 1.2)}
_THINNED = {**_WEIGHT, "density": (0.02, 1.0)}
_BREADCRUMBS = Shared((1, 3), "needed", {**_THINNED, "gamma": (0.0, 0.3)}, {"lambda": (0.3, 1.5)})
SHARED: Mapping[str, Shared] = {
    "linear": Shared((1, 3), "counts", _WEIGHT, switches=("normalize",)),
    "task_arithmetic": Shared((1, 3), "needed", _WEIGHT, {"lambda": (0.3, 1.5)}, ("normalize", "int8_mask")),
    "ties": Shared((1, 3), "needed", _THINNED, {"lambda": (0.3, 1.5)}, ("normalize", "int8_mask", "rescale")),
    "breadcrumbs": _BREADCRUMBS._replace(switches=("normalize", "rescale")),
    "breadcrumbs_ties": _BREADCRUMBS._replace(switches=("normalize", "rescale", "int8_mask")),
    "slerp": Shared((1, 1), "needed", of_merge={"t": (0.0, 1.0)}),
    "nuslerp": Shared((2, 2), "optional", _WEIGHT, switches=("nuslerp_row_wise", "nuslerp_flatten")),
    "multislerp": Shared((1, 3), "optional", _WEIGHT, switches=("normalize_weights",)),
    "karcher": Shared((1, 3), "counts", of_merge={"tol": (1e-7, 1e-4)}),
    "sce": Shared((1, 3), "needed", of_merge={"select_topk": (0.02, 1.0)}, switches=("int8_mask",)),
    "model_stock": Shared((2, 3), "needed", switches=("filter_wise",)),
    "arcee_fusion": Shared((1, 1), "needed"),
    "nearswap": Shared((1, 1), "needed", of_merge={"t": (0.0, 0.03)}),
    "ram": Shared((1, 3), "needed", of_merge={"epsilon": (0.0, 0.03)}),
    "ramplus_tl": Shared((1, 3), "needed", of_merge={"r": (0.0, 1.0), "alpha": (0.0, 2.0), "epsilon": (0.0, 0.03)}),
    "passthrough": Shared((2, 2), "counts", {"scale": (0.2, 1.0)}),
}


def random_recipe(
    method: str, paths: Mapping[str, Path], layers: int, draw: random.Random, filters: Sequence[str]
) -> Recipe:
    """Return a valid recipe of ``method`` over some of the models.

    Args:
        method: one of `SHARED`.
        paths: the models' folders by name; one is "base".
        layers: how many layers each of them has.
        draw: where the random numbers come from.
        filters: parts of tensor names to filter by; none for recipes in which all tensors have the same numbers.
    """
    models = {name: str(path) for name, path in paths.items()}
    if method == "passthrough":
        fields = _stack(models, layers, draw, filters)
    else:
        fields = _mixture(SHARED[method], models, layers, draw, filters)
    if draw.random() < 0.5:
        fields["dtype"] = draw.choice(DTYPES)
    if draw.random() < 0.25:
        fields["out_dtype"] = draw.choice(DTYPES)
    return Recipe.model_validate({"merge_method": method, **fields})


def _number(draw: random.Random, low: float, high: float) -> float:
    return float(f"{draw.uniform(low, high):.3g}")


def _setting(draw: random.Random, low: float, high: float, layers: int, filters: Sequence[str]) -> Any:
    """Return a number, a gradient over the layers, or a list of filtered ones that covers every tensor."""

    def gradient() -> list[float]:
        return [_number(draw, low, high) for _ in range(draw.choice([2, 3, layers, 5]))]

    kind = draw.random()
    if kind < 0.4 or not filters:
        return _number(draw, low, high)
    if kind < 0.65:
        return gradient()
    filtered = [
        {"filter": text, "value": draw.choice([_number(draw, low, high), gradient()])}
        for text in draw.sample(list(filters), 2)
    ]
    rest = {"value": _number(draw, low, high)} if draw.random() < 0.7 else {"filter": "*", "value": gradient()}
    return [*filtered, rest]


def _stack(models: Mapping[str, str], layers: int, draw: random.Random, filters: Sequence[str]) -> dict[str, Any]:
    slices = []
    for name in draw.sample(sorted(set(models) - {"base"}), 2):
        start = draw.randrange(layers - 1)
        source: dict[str, Any] = {"model": models[name]}
        source["layer_range"] = [start, draw.randrange(start + 1, layers + 1)]
        if draw.random() < 0.5:
            source["parameters"] = {"scale": _setting(draw, 0.2, 1.0, layers, filters)}
        slices.append({"sources": [source]})
    return {"slices": slices}


def _mixture(
    shared: Shared, models: Mapping[str, str], layers: int, draw: random.Random, filters: Sequence[str]
) -> dict[str, Any]:
    base = models["base"]
    parents = sorted(set(models) - {"base"})
    with_base = shared.base == "needed" or draw.random() < 0.4
    names = draw.sample(parents, draw.randint(shared.models[0], min(shared.models[1], len(parents))))
    entries: list[dict[str, Any]] = [{"model": models[name]} for name in names]
    for entry in entries:
        entry["parameters"] = _settings(shared, shared.of_models, layers, draw, filters)
    parameters = _settings(shared, shared.of_merge, layers, draw, filters)
    parameters |= {name: draw.random() < 0.5 for name in shared.switches if draw.random() < 0.6}
    if with_base and shared.base == "counts" and "weight" in shared.of_models:
        parameters["weight"] = _number(draw, 0.1, 1.0)  # the base's, which has no entry
    if with_base and draw.random() < 0.3 and shared.base != "counts":
        entries.insert(draw.randrange(len(entries) + 1), {"model": base})
    fields: dict[str, Any] = {"base_model": base} if with_base else {}
    if filters and draw.random() < 0.25:
        return {
            **fields,
            "slices": _halves(entries, base if with_base else None, layers, draw, shared),
            "parameters": parameters,
        }
    return {**fields, "models": entries, "parameters": parameters}


def _settings(
    shared: Shared, ranges: Mapping[str, Range], layers: int, draw: random.Random, filters: Sequence[str]
) -> dict[str, Any]:
    """Return values for the required parameters and for most of the others."""
    chosen = {name: span for name, span in ranges.items() if name in shared.required or draw.random() < 0.7}
    # Now and then a negative weight, but not where weights divide: sums near zero are no test of anything.
    negative = shared.base != "optional" and draw.random() < 0.15
    low = {name: -0.2 if name == "weight" and negative else span[0] for name, span in chosen.items()}
    return {name: _setting(draw, low[name], high, layers, filters) for name, (_, high) in chosen.items()}


def _halves(
    entries: list[dict[str, Any]], base: str | None, layers: int, draw: random.Random, shared: Shared
) -> list[dict[str, Any]]:
    """Return the same merge as two slices, at times with another number in one of them."""
    if base and shared.base != "counts" and base not in [entry["model"] for entry in entries]:
        entries = [*entries, {"model": base}]
    middle = draw.randrange(1, layers)
    slices: list[dict[str, Any]] = []
    for span in ([0, middle], [middle, layers]):
        part: dict[str, Any] = {"sources": [{**entry, "layer_range": span} for entry in entries]}
        if shared.of_merge and draw.random() < 0.4:
            name, (low, high) = draw.choice(sorted(shared.of_merge.items()))
            part["parameters"] = {name: _number(draw, low, high)}
        slices.append(part)
    return slices
