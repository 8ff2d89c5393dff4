"""Activation matching: neurons brought together that fire together.

Ainsworth, Hayase & Srinivasa 2023, §3.1 (after Li et al. 2016): both models see the same inputs, and a linear
assignment raises the sum of the correlations of the neurons that are matched. Samples are taken where a linear weight
reads, so neurons of an MLP are compared at its second matrix, heads at the output projection, the residual stream
wherever it is read. Formally this is `weight_matching` on matrices of activations (tokens × neurons) instead of
weights; groups are then independent of each other. What no weight reads, such as the numbers within queries and keys,
has no samples and is matched by weights, with the rest held.

PLeaS (Nasery et al. 2025, https://arxiv.org/abs/2407.02447) matches in this way too, before it solves for the merged
weights; of its matchings this is the one that keeps the models' width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from evomerge.merging.alignment.blocks import Array, Read
from evomerge.merging.alignment.optimal_transport import without
from evomerge.merging.alignment.specification import Specification, TensorAxes
from evomerge.merging.alignment.weight_matching import Matching, match

Samples = Callable[[str], torch.Tensor | None]
"""Returns the inputs of a weight, (tokens, inputs), by the weight's name; the same tokens for both models."""


def match_activations(
    specification: Specification, target: Samples, source: Samples, weights: tuple[Read, Read], *, seed: int = 0
) -> Matching:
    """Return the orders of the source's neurons that make them fire most like the target's.

    Args:
        specification: of both models.
        target: samples of the model whose order is taken.
        source: of the model that is permuted.
        weights: both models' tensors, for groups without samples.
        seed: decides the order in which groups are visited, where several are tied to each other.
    """
    sampled = sampled_specification(specification, target, source)
    found = match(
        sampled,
        lambda name: _standardised(target(name)),
        lambda name: _standardised(source(name)),
        seed=seed,
    )
    rest = match(specification, *weights, seed=seed, held=found.orders)
    return Matching(rest.orders, found.objectives)


def sampled_specification(specification: Specification, target: Samples, source: Samples) -> Specification:
    """Return what the dimensions of the samples are: tokens, and what the weight reads."""
    tensors: dict[str, TensorAxes] = {}
    seen: set[int] = set()
    for name, axes in sorted(specification.tensors.items()):
        one, other = target(name), source(name)
        if one is None or other is None or len(axes.reads) != 1 or axes.at:
            continue
        read = axes.dimensions[next(iter(axes.reads))]
        if one.data_ptr() in seen:  # queries, keys and values read the same
            continue
        seen.add(one.data_ptr())
        tensors[name] = TensorAxes((((len(one),),), read), reads=frozenset({1}))
    groups = set().union(*(axes.groups() for axes in tensors.values())) if tensors else set()
    groups = {name for name in groups if specification.groups[name].within in {None, *groups}}
    unseen = set(specification.groups) - groups
    return without(Specification(specification.groups, tensors), unseen)


def group_activations(specification: Specification, samples: Samples) -> dict[str, Array]:
    """Return group → (tokens, neurons), for groups that some weight reads by themselves."""
    found: dict[str, list[Array]] = {}
    for name, axes in sorted(specification.tensors.items()):
        if len(axes.reads) != 1 or axes.at or (sample := samples(name)) is None:
            continue
        (read,) = axes.reads
        segments = axes.dimensions[read]
        if len(segments) == 1 and len(segments[0]) == 1 and isinstance(segments[0][0], str):
            found.setdefault(segments[0][0], []).append(np.asarray(sample.to(torch.float64)))
    return {group: np.concatenate(arrays) for group, arrays in found.items()}


def _standardised(sample: torch.Tensor | None) -> Array:
    """Return samples with mean 0 and norm 1 for each neuron, so that inner products are correlations."""
    values = np.asarray(sample.to(torch.float64)) if sample is not None else np.zeros((0, 0))
    centred = values - values.mean(axis=0)
    norms = np.linalg.norm(centred, axis=0)
    result: Array = centred / np.where(norms > 0, norms, 1.0)
    return result
