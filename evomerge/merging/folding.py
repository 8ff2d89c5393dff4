"""Folding of a path's scales into plain weights, so that a routed model is an ordinary one with more layers.

On a path the hidden states h are multiplied by a scale w_t on entering step t. No weight of a layer can do that, as
the scale also meets what goes past the layer, but the weights of the whole path can. With c_t = w_1 ... w_t, the
folded model carries u_t = h_t / d_t with d_t = c_t / c_1 from layer to layer: embeddings are multiplied by c_1, what a
layer adds is divided by d_t, and norms, which give the same for u as for h but for the sign, get that.

Exact but for the ``eps`` of norms, which is added to the mean square of u where it was added to that of h: with scales
of 0.5 to 1.5 that moves logits by about 1e-6 of their size; a scale of 0.01, which leaves h hardly larger than eps, by
some percent. The first layer and layers that read the stream through no norm (OLMo 2's) are exact in that too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import mul
from typing import Any

import torch

from evomerge.errors import ConfigError, Problem
from evomerge.merging.folding_families import FAMILIES, Family, Role
from evomerge.recipes import layer_of, stack_of

LARGEST = 1e12  # of d_t and 1/d_t: norms square the stream in float32, which ends at 3e38
_HINT = "scales: none routes any architecture"


@dataclass(frozen=True)
class Factor:
    """What a tensor is multiplied by; the ``offset`` is 1 where a norm multiplies by 1 + weight."""

    scale: float
    offset: float = 0.0

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return scale × (tensor + offset) − offset as a new tensor of float32, or of float64 if it was that."""
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        return wide.add(self.offset).mul_(self.scale).sub_(self.offset) if self.offset else wide * self.scale


@dataclass(frozen=True)
class _Place:
    """A tensor's part in its architecture; ``layer`` is None outside the layers."""

    role: Role
    layer: int | None
    is_bias: bool


def check_foldable(config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Check that scales can be folded into a model's weights.

    Args:
        config: the model's config.json.
        names: of its tensors.

    Raises:
        ConfigError: they cannot: the architecture is not known, or one of its tensors is not.
    """
    _places(config, names)


def factors(
    config: Mapping[str, Any], scales: Sequence[float], names: Iterable[str], *, tied: bool
) -> dict[str, Factor]:
    """Return tensor → the factor that folds a path's scales into it; tensors that stay as they are have none.

    Args:
        config: the merged model's config.json.
        scales: of each layer of the merged model, in order; finite and not 0.
        names: of the merged model's tensors, in whose layers the path's steps are numbered.
        tied: whether the head shares the weight of the token embeddings.

    Raises:
        ConfigError: scales cannot be folded into this architecture, or their product leaves the range of numbers.
        ValueError: there are not as many scales as layers.
    """
    if all(scale == 1 for scale in scales):
        return {}
    family, places = _places(config, names)
    layers = 1 + max((place.layer for place in places.values() if place.layer is not None), default=-1)
    if len(scales) != layers:
        raise ValueError(f"{len(scales)} scales for {layers} layers")
    gauge = scales[0]
    divisors = list(accumulate((1.0, *scales[1:]), mul))
    _check_range((gauge, *divisors[1:]))
    shared = gauge if tied and family.embedding_norm is None else 1.0  # what the tied head is multiplied by
    found = {
        name: _factor(place, divisors[-1 if place.layer is None else place.layer], gauge, shared, family.offset)
        for name, place in places.items()
    }
    return {name: factor for name, factor in found.items() if factor is not None and factor.scale != 1}


def stream_norms(config: Mapping[str, Any], scales: Sequence[float], names: Iterable[str]) -> dict[str, float]:
    """Return norm → |d_t|, of the norms that read a stream that the folded model has divided by d_t, where it is not 1.

    With d_t² times its ``eps``, a norm of the unfolded model gives what that of the folded one gives.

    Args:
        config: as for `factors`.
        scales: as for `factors`.
        names: as for `factors`.

    Returns:
        Modules, named from the one on that holds the list of layers: ``layers.3.input_layernorm``, ``norm``.

    Raises:
        ConfigError: as `factors` does.
    """
    names = list(names)
    family, places = _places(config, names)
    divisors = list(accumulate((1.0, *scales[1:]), mul))
    _check_range(divisors)
    root, norms = _root(family, names), (Role.NORM, Role.FINAL)
    found = {
        _module(name.removeprefix(root))[0]: abs(divisors[-1 if place.layer is None else place.layer])
        for name, place in places.items()
        if place.role in norms
    }
    return {name: divisor for name, divisor in found.items() if divisor != 1}


def _factor(place: _Place, divisor: float, gauge: float, shared: float, offset: float) -> Factor | None:
    """Return the factor of one tensor.

    Args:
        divisor: of the stream in its layer; after the last layer outside.
        gauge: what the stream begins multiplied by.
        shared: the gauge where the head has it too, else 1.
        offset: of the weights of norms.
    """
    sign = math.copysign(1.0, divisor)
    match place.role, place.is_bias:
        case Role.NORM, False:
            return Factor(sign, offset)
        case Role.READER, False:
            return Factor(divisor)
        case (Role.WRITER, _) | (Role.POST, True):
            return Factor(1 / divisor)
        case Role.POST, False:
            return Factor(1 / divisor, offset)
        case Role.EMBEDDING, _:
            return Factor(gauge)
        case Role.FINAL, is_bias:
            return Factor(1 / shared) if is_bias else Factor(sign / shared, offset)
        case Role.HEAD, False:
            return Factor(shared)  # where a file of a tied model holds it beside the embeddings
        case _:
            return None


def _check_range(products: Sequence[float]) -> None:
    for step, product in enumerate(products):
        if not 1 / LARGEST <= abs(product) <= LARGEST:
            what = f"the scales of steps {min(step, 1)} to {step} multiply to {product:g}, too far from 1 for weights"
            hint = f"keep their products within {1 / LARGEST:g} and {LARGEST:g}: scale less, or fewer steps"
            raise ConfigError(Problem(what, "slices", hint))


def _places(config: Mapping[str, Any], names: Iterable[str]) -> tuple[Family, dict[str, _Place]]:
    """Return the model's family and each tensor's place in it.

    Raises:
        ConfigError: they are not known.
    """
    kind = str(config.get("model_type"))
    called = f"{', '.join(config.get('architectures') or []) or 'this model'} (model_type {kind})"
    if kind not in FAMILIES:
        hint = f"{_HINT}; scales fold into {', '.join(FAMILIES)}"
        raise ConfigError(Problem(f"scales of a path cannot be folded into the weights of {called}", "scales", hint))
    family = FAMILIES[kind]
    for field, value in family.refused.items():
        if config.get(field) == value:
            what = f"scales of a path cannot be folded into the weights of {called} with {field}: {value}"
            raise ConfigError(Problem(what, "scales", _HINT))
    names = list(names)
    root = _root(family, names)
    found = {name: _place(kind, root, name) for name in names}
    places = {name: place for name, place in found.items() if place is not None}
    if unknown := [name for name in names if name not in places]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        what = f"scales of a path cannot be folded into {called}: what its tensor {unknown[0]}{more} does is not known"
        raise ConfigError(Problem(what, "scales", _HINT))
    if Role.FINAL not in {place.role for place in places.values()}:
        what = f"scales of a path cannot be folded into {called}: it has no weight of a norm after the last layer"
        raise ConfigError(Problem(what, "scales", _HINT))
    return family, places


def _root(family: Family, names: Iterable[str]) -> str:
    """Return what is before the list of layers in the names of tensors, such as "model."."""
    stacks = {stack for name in names if (stack := stack_of(name)) is not None}
    roots = {stack.removesuffix(family.layers) for stack in stacks if f".{stack}".endswith(f".{family.layers}")}
    return min(roots, default="")


@lru_cache(maxsize=1 << 17)  # a model of experts has tens of thousands of names, the same for every path
def _place(kind: str, root: str, name: str) -> _Place | None:
    """Return the place of a tensor in the family ``kind``; None if it is not known."""
    family = FAMILIES[kind]
    layer = layer_of(name)
    if layer is None:
        module, is_bias = _module(name.removeprefix(root))
        role = family.role_outside(module)
    elif stack_of(name) == f"{root}{family.layers}":
        module, is_bias = _module(name.removeprefix(f"{root}{family.layers}.{layer}."))
        role = family.role_in_layer(module)
    else:
        return None
    return None if role is None else _Place(role, layer, is_bias)


def _module(name: str) -> tuple[str, bool]:
    """Return the module whose weight or bias this is (other parameters count as modules), and whether it is a bias."""
    if name.endswith(".bias"):
        return name.removesuffix(".bias"), True
    return name.removesuffix(".weight"), False
