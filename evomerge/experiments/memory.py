"""How much memory an experiment takes, from headers and configs alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from evomerge.checkpoints.skeleton import load_config
from evomerge.errors import CheckpointError, EvomergeError
from evomerge.experiments.preflight import Prepared, ends_of, size_of
from evomerge.fitness.kv_cache import kv_cache, width
from evomerge.fitness.lengths import Lengths
from evomerge.merging import METHODS, Parents
from evomerge.merging.parents import Step
from evomerge.merging.preparations import Preparations
from evomerge.merging.state import num_bytes
from evomerge.merging.tensors import merge_tensor, numbers, recipe_of
from evomerge.recipes import Recipe, layer_of, path_of
from evomerge.reports.planned import MemoryPlan

PROCESS = 700 * 2**20  # Python, torch, transformers and lm-eval, as measured; more with CUDA's libraries
CUDA_PROCESS = 3 * 2**30
LARGE = 1 << 22  # entries of a matrix from which on a corner is decomposed instead
CORNER = 256
BATCH = 64  # sequences, where the run will find out how many


def memory_of(
    prepared: Prepared,
    lengths: Mapping[str, Lengths],
    *,
    device: str,
    batch: int | None,
    machine: int,
    gpu: int | None,
    measured: int | None = None,
) -> MemoryPlan:
    """Return what a worker of a checked experiment needs.

    Args:
        prepared: the experiment.
        lengths: of the inputs of its tasks.
        device: ``cpu`` or ``cuda``.
        batch: sequences run together; None takes the experiment's, or a usual number where the run finds it.
        machine: bytes of its memory.
        gpu: bytes of a GPU's.
        measured: of a worker that a probe built.
    """
    parents, dtype = prepared.parents.viewed(prepared.like), getattr(torch, prepared.dtype)
    assumed = []
    configured = prepared.experiment.fitness.batch_size
    size = batch or (configured if isinstance(configured, int) else BATCH)
    if batch is None and not isinstance(configured, int):
        assumed.append(f"batches of {size}, as the run finds out how many")
    cache = logits = activations = 0
    donor = parents[prepared.donor]
    try:
        config: Any = load_config(donor.folder, donor.name, donor.config)
        longest = path_of(prepared.like) and path_of(ends_of(prepared.space)[1])
        deeper = 1.0 if longest is None else max(1.0, len(longest) / donor.num_layers)
        if longest is not None and any(task.answer for task in lengths.values()):
            assumed.append(f"generation along the longest path, of {len(longest)} layers")
        for task in lengths.values():
            kept = kv_cache(config, batch=size, tokens=task.total, itemsize=dtype.itemsize, source_tokens=task.prompt)
            if task.answer:
                cache = max(cache, int(kept.bytes * deeper))
                assumed += [f"in generation {kept.assumed}"] if kept.assumed else []
            text = config.get_text_config(decoder=True)
            scored = 1 if task.answer else task.total
            logits = max(logits, size * scored * text.vocab_size * dtype.itemsize)
            activations = max(activations, size * task.prompt * width(config) * dtype.itemsize)
    except (CheckpointError, AttributeError, TypeError) as error:
        if not donor.is_plain:  # plain tensors have no config: what their functions take is another matter
            assumed.append(f"what a batch takes is not known: {error}")
    if not lengths:
        assumed.append("what functions take is not known")
    state = prepared_bytes(prepared.like, parents)
    if state is None:
        assumed.append("what merging prepares is not known")
    return MemoryPlan(
        weights=weights_of(parents, prepared.donor, dtype),
        layers=layers_of(prepared, dtype),
        cache=cache,
        logits=logits,
        activations=activations,
        process=CUDA_PROCESS if device == "cuda" else PROCESS,
        parents=sum(size_of(checkpoint) for checkpoint in prepared.parents.checkpoints.values()),
        prepared=state or 0,
        batch=size,
        machine=machine,
        device=gpu if device == "cuda" else None,
        measured=measured,
        assumed=tuple(dict.fromkeys(assumed)),
    )


def weights_of(parents: Parents, reference: str, dtype: torch.dtype, *, layers_only: bool = False) -> int:
    """Return the bytes of a resident model: of all that it stores, tied tensors once.

    Args:
        parents: every model that is merged.
        reference: whose config the model has.
        dtype: of its weights.
        layers_only: leave out what belongs to no layer.
    """
    total = 0
    for name in parents.tensor_names(list(parents.checkpoints))[reference]:
        info = parents.info(reference, name)
        if info is not None and not (layers_only and layer_of(name) is None):
            total += math.prod(info.shape) * (dtype if info.dtype.is_floating_point else info.dtype).itemsize
    return total


def layers_of(prepared: Prepared, dtype: torch.dtype) -> int:
    """Return the bytes of the parents' layers that paths go through, besides those of the resident model."""
    if path_of(prepared.like) is None:
        return 0
    others = [reference for reference in prepared.experiment.parents.values() if reference != prepared.donor]
    return sum(weights_of(prepared.parents, reference, dtype, layers_only=True) for reference in dict.fromkeys(others))


class _Weighed(Exception):
    """Ends a merge once its prepared state, of ``args[0]`` bytes, is there."""


class _Scales(Preparations):
    """Keeps nothing: says how much there is."""

    def get(
        self,
        key: tuple[Hashable, ...],
        fingerprints: Callable[[], Sequence[str]],
        prepare: Callable[[], Any],
        device: torch.device | str = "cpu",
    ) -> Any:
        """Prepare, and give up.

        Raises:
            _Weighed: always.
        """
        raise _Weighed(num_bytes(prepare()))


def prepared_bytes(recipe: Recipe, parents: Parents) -> int | None:
    """Return the bytes of what merging prepares, which depends on the parents alone; None if that cannot be told.

    One tensor of each shape is prepared; others of its shape take as much. Of a large one whose state is made of whole
    matrices a corner is, as decomposing all of it would take long.
    """
    known: dict[Any, int] = {}
    total = 0
    for step in parents.plan(recipe):
        method = METHODS[recipe_of(recipe, step).merge_method]
        if method.prepare is None or not step.dtype.is_floating_point:
            continue
        key = (method.name, step.shape, len(step.inputs))
        if key not in known:
            try:
                known[key] = _weight_of(recipe, step, parents, whole=method.kind == "elementwise")
            except (EvomergeError, RuntimeError):
                return None
        total += known[key]
    return total


def _weight_of(recipe: Recipe, step: Step, parents: Parents, *, whole: bool) -> int:
    corner = step.shape if whole or math.prod(step.shape) <= LARGE else tuple(min(CORNER, n) for n in step.shape)
    part = tuple(slice(extent) for extent in corner)

    def fetch(model: str, name: str) -> torch.Tensor:
        return parents.tensor(model, name)[part].contiguous()

    try:
        merge_tensor(numbers(recipe, step), replace(step, shape=corner), parents, _Scales(), fetch=fetch)
    except _Weighed as weighed:
        return int(weighed.args[0] * math.prod(step.shape) / math.prod(corner))
    return 0  # copied, as one model alone has it
