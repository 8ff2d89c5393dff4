"""What a file says about a search space of kind ``layer_routing``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat, field_validator

from evomerge.search_spaces.base import SearchSpaceConfig

PINNED = 2  # the layer that every path begins with, and the one that it ends with


class LayerRoutingConfig(SearchSpaceConfig):
    """Fields of a search space of kind ``layer_routing`` (search_spaces/README.md explains them).

    Attributes:
        parents: nicknames of the parents whose layers are laid out, in that order; None: all, in the experiment's.
        repetitions: how often the layers of all parents are laid out one after another.
        scales: what the hidden states are multiplied by on entering a layer: ``none`` (nothing), ``step`` (one gene
            for each place) or ``network`` (an evolved network tells it from the two layers and the step).
        scale_bounds: smallest and largest scale.
        hidden: hidden units of the network.
        max_depth: the most steps that a path may have; None: all places and the pinned layers.
        first: the parent whose first layer begins every path; None: the first of ``parents``.
        last: the parent whose last layer ends every path; None: the same.
        outside: the parent (or ``base``) that gives embeddings, final norm and head; None: ``first``.
    """

    kind: Literal["layer_routing"] = "layer_routing"
    parents: tuple[str, ...] | None = None
    repetitions: int = Field(default=2, ge=1)
    scales: Literal["none", "step", "network"] = "network"
    scale_bounds: tuple[FiniteFloat, FiniteFloat] = (0.5, 1.5)
    hidden: int = Field(default=4, ge=1)
    max_depth: int | None = None
    first: str | None = None
    last: str | None = None
    outside: str | None = None

    @field_validator("parents")
    @classmethod
    def _parents(cls, parents: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if parents is None:
            return None
        if not parents:
            raise ValueError("at least one parent must take part; leave the field out for all of them")
        for name in parents:
            if parents.count(name) > 1:
                raise ValueError(f"{name!r} is listed twice; repetitions lay the layers of all parents out again")
        return parents

    @field_validator("scale_bounds")
    @classmethod
    def _scale_bounds(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        low, high = bounds
        if low >= high:
            raise ValueError("the bounds of the scales must rise; without scales write scales: none")
        if not low <= 1 <= high:
            raise ValueError(f"a search starts from scales of 1, which [{low:g}, {high:g}] does not contain")
        return bounds

    @field_validator("max_depth")
    @classmethod
    def _max_depth(cls, depth: int | None) -> int | None:
        if depth is not None and depth <= PINNED:
            raise ValueError(f"the two pinned layers alone leave nothing to search: use at least {PINNED + 1}")
        return depth
