"""The ``align`` field of a recipe: every model seen with its neurons in the order of one of them.

What is found is kept in evomerge's cache, so that the workers of a node, and later runs, find it there. scipy is
imported when something is matched: what only reads recipes should not wait for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import Checkpoint, CheckpointView, TensorInfo, cache_folder
from evomerge.errors import ConfigError, EvomergeError, MergeError, Problem
from evomerge.merging.alignment.correspondence import check_correspondence, fitted, restricted, stored_names
from evomerge.merging.alignment.methods import ALIGNMENTS, needs_samples, settings_problems
from evomerge.merging.alignment.specification import Specification
from evomerge.merging.alignment.symmetries import discover
from evomerge.merging.alignment.transport import Movement, Sides, apply
from evomerge.merging.statistics import Statistics
from evomerge.recipes import Recipe

Reader = Callable[[str], torch.Tensor | None]
VERSION = 1  # raised when the same settings find other permutations, so that old caches are not used
SAMPLE = "sample"


@dataclass(frozen=True)
class GatheredSamples:
    """Activations of one model.

    Args:
        read: returns (tokens, inputs) of a weight, by its name in the checkpoint; None where there are none.
        digest: changes with the activations.
    """

    read: Callable[[str], torch.Tensor | None]
    digest: str


class AlignedCheckpoint(CheckpointView):
    """A model with its neurons in the order of another one; found when the first tensor is read.

    Args:
        source: the model that is seen.
        target: the model whose order is taken.
        specification: which neurons may be moved, in the target.
        own: the same in the source.
        find: returns how each group moves.
        key: changes with everything that ``find`` depends on but the two models.
    """

    def __init__(
        self,
        source: Checkpoint,
        target: Checkpoint,
        specification: Specification,
        own: Specification,
        find: Callable[[], dict[str, Movement]],
        key: str,
    ) -> None:
        super().__init__(source)
        self._target, self._specification, self._own = target, specification, own
        self._find, self._key = find, key
        self._stored = stored_names(own, source)
        self._named = {stored: name for name, stored in self._stored.items()}
        self.tensors = MappingProxyType({name: self._info(info) for name, info in source.tensors.items()})
        if self._wider:
            widths = {field: target.config[field] for field in target.config if field.endswith("intermediate_size")}
            self.config = source.config | widths

    def tensor(self, name: str) -> torch.Tensor:
        """Return tensor ``name`` with its neurons in the target's order, in the source's dtype."""
        if name not in self._named:
            return self.source.tensor(name)
        return apply(self._own, self._named[name], self.movements, self._read)

    @cached_property
    def movements(self) -> dict[str, Movement]:
        """Group → how its neurons move; from the cache where it is there, else found and kept there."""
        file = cache_folder() / "alignments" / f"{self._digest}.safetensors"
        kept = _load(file)
        if kept is None:
            kept = self._find()
            _save(kept, file)
        return kept

    @property
    def fingerprint(self) -> str:
        """Changes with both models and the settings."""
        return self._digest[:16]

    @cached_property
    def _digest(self) -> str:
        content = [VERSION, self._key, self._target.fingerprint, self.source.fingerprint]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]

    @property
    def _wider(self) -> bool:
        return any(self._own.groups[name].size != group.size for name, group in self._specification.groups.items())

    def _read(self, name: str) -> torch.Tensor:
        return self.source.tensor(self._stored[name])

    def _info(self, info: TensorInfo) -> TensorInfo:
        name = self._named.get(info.name)
        if name is None or name not in self._specification.tensors or not self._wider:
            return info
        shape = self._specification.shape(name)
        return replace(info, shape=shape, stop=info.start + prod(shape) * info.dtype.itemsize)


def align(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Mapping[str, Checkpoint]:
    """Return the recipe's models with their neurons in the order of one of them, where the recipe asks for that.

    Raises:
        ConfigError: the method, its parameters or the model to align to do not exist, or a model's neurons are not
            understood.
    """
    if recipe.align is None:
        return checkpoints
    if problems := settings_problems(recipe):
        raise ConfigError(problems)
    to = recipe.align.to or recipe.base_model or next(iter(checkpoints))
    samples = _opened_samples(recipe, checkpoints, to)
    try:
        return {
            reference: checkpoint
            if reference == to
            else aligned(
                checkpoint,
                checkpoints[to],
                recipe.align.method,
                parameters=recipe.align.parameters,
                samples=None if samples is None else (samples[to], samples[reference]),
            )
            for reference, checkpoint in checkpoints.items()
        }
    except EvomergeError as error:
        raise ConfigError(Problem(str(error).removeprefix("align: "), "align")) from error


def aligned(
    source: Checkpoint,
    target: Checkpoint,
    method: str = "weight_matching",
    *,
    parameters: Mapping[str, Any] | None = None,
    samples: tuple[GatheredSamples, GatheredSamples] | None = None,
    specification: Specification | None = None,
    own: Specification | None = None,
) -> AlignedCheckpoint:
    """Return ``source`` with its neurons in the order of ``target``'s; a view, nothing is written.

    Args:
        source: the model that is seen.
        target: the model whose order is taken.
        method: one of ``ALIGNMENTS``.
        parameters: the method's; defaults where left out.
        samples: activations of target and source, at the same tokens.
        specification: which neurons of the target may be moved; for models that transformers knows it is found.
        own: the same of the source, where its sizes are not the target's.

    Raises:
        MergeError: the models' neurons are not understood, or do not correspond.
        CheckpointError: a model lacks a tensor.
    """
    settings = {name: setting.default for name, setting in ALIGNMENTS[method].parameters.items()} | dict(
        parameters or {}
    )
    ours = fitted(specification or discover(target.config), target)
    own = fitted(own or specification or discover(source.config), source)
    check_correspondence(ours, own, target, source, method)
    shared = set(ours.tensors) & set(own.tensors)  # one may store a head that the other ties to its embedding
    names = stored_names(ours, target), stored_names(own, source)
    weights = Sides(
        lambda name: target.tensor(names[0][name]),
        lambda name: source.tensor(names[1][name]),
    )
    fires = None if samples is None else (_renamed(samples[0], names[0]), _renamed(samples[1], names[1]))

    def find() -> dict[str, Movement]:
        return _find(method, settings, restricted(ours, shared), restricted(own, shared), weights, fires)

    key = json.dumps([method, sorted(settings.items()), ours.to_json(), [each.digest for each in samples or ()]])
    return AlignedCheckpoint(source, target, ours, own, find, key)


def _find(
    method: str,
    settings: Mapping[str, Any],
    ours: Specification,
    own: Specification,
    weights: Sides,
    fires: tuple[Reader, Reader] | None,
) -> dict[str, Movement]:
    """Return how each group of the source moves."""
    from evomerge.merging.alignment.activations import group_activations, match_activations
    from evomerge.merging.alignment.optimal_transport import fuse
    from evomerge.merging.alignment.weight_matching import match

    if method == "ot_fusion":
        acts = fires if settings["metric"] == "acts" else None
        both = [] if acts is None else [group_activations(ours, acts[0]), group_activations(own, acts[1])]
        return fuse(ours, own, weights, regularisation=float(settings["regularisation"]), activations=both)
    seed = int(settings["seed"])
    reads = tuple(lambda name, read=read: _array(read(name)) for read in (weights.target, weights.source))
    if method == "weight_matching":
        return dict(match(ours, *reads, seed=seed, sweeps=int(settings["sweeps"])).orders)
    if fires is None:
        raise MergeError(f"align: {method} needs samples of the models' activations")
    return dict(match_activations(ours, *fires, (reads[0], reads[1]), seed=seed).orders)


def _opened_samples(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], to: str
) -> dict[str, GatheredSamples] | None:
    """Return the samples of each model of the recipe, None if its alignment needs none.

    Raises:
        ConfigError: there are none of a model, or they were not gathered at the same tokens.
    """
    if not needs_samples(recipe) or recipe.statistics is None:
        return None
    own = {reference: _underlying(checkpoint) for reference, checkpoint in checkpoints.items()}
    try:
        opened = Statistics.open(recipe.statistics)
    except EvomergeError as error:
        raise ConfigError(Problem(str(error), "statistics")) from error
    if problems := opened.problems(own, (SAMPLE,)):
        raise ConfigError(problems)
    matched = opened.matched(own)
    texts = {model.data for model in matched.models.values()}
    if len(texts) > 1:
        what = f"the samples in {opened.folder} were taken from different texts, so neurons cannot be compared"
        raise ConfigError(Problem(what, "statistics", "gather the statistics of all models in one command"))
    return {
        reference: GatheredSamples(
            lambda name, reference=reference: matched.tensor(reference, SAMPLE, name),  # type: ignore[misc]
            hashlib.sha256(json.dumps([model.fingerprint, model.data, opened.made]).encode()).hexdigest(),
        )
        for reference, model in matched.models.items()
    }


def _underlying(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint that a view shows, whose weights statistics are known by."""
    while isinstance(checkpoint, CheckpointView):
        checkpoint = checkpoint.source
    return checkpoint


def _renamed(samples: GatheredSamples, names: Mapping[str, str]) -> Reader:
    return lambda name: samples.read(names[name])


def _array(tensor: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.to(torch.float64))


def _load(file: Path) -> dict[str, Movement] | None:
    if not file.is_file():
        return None
    try:
        kept = load_file(file)
    except (OSError, SafetensorError):
        return None  # made by something else, or damaged: found again
    return {name: tensor if tensor.is_floating_point() else tensor.numpy() for name, tensor in kept.items()}


def _save(movements: Mapping[str, Movement], file: Path) -> None:
    """Write atomically: other workers see the whole file or none."""
    tensors = {name: torch.as_tensor(movement).contiguous() for name, movement in movements.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        save_file(tensors, made)
        os.replace(made, file)
