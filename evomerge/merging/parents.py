"""The opened parents of a recipe or an experiment, as tensors to merge."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

import torch

from evomerge.checkpoints import Checkpoint, TensorInfo, resolve, tied_tensors
from evomerge.errors import CheckpointError, Problem
from evomerge.merging import compatibility
from evomerge.merging.views import VIEWS
from evomerge.recipes import PlannedTensor, Recipe, plan

VIEWED = ("override_architecture", "tokenizer_source", "tokenizer", "align", "statistics")  # what views depend on
RECOMPUTED = ("rotary_emb.inv_freq",)  # old files store these buffers; models compute them from their config


@dataclass(frozen=True)
class Step:
    """One tensor of a merged model: what it is made of, and what the parents' headers say of that.

    Args:
        planned: the tensor's name and place in the recipe.
        inputs: model → its tensor, for those models that have it, in the recipe's order.
        shape: of the first input.
        dtype: the widest dtype of the inputs.
        num_layers: how many layers the merged model has.
    """

    planned: PlannedTensor
    inputs: Mapping[str, str]
    shape: tuple[int, ...]
    dtype: torch.dtype
    num_layers: int = 0

    @property
    def name(self) -> str:
        """The merged tensor's name."""
        return self.planned.name


class Parents:
    """Opened checkpoints by reference, with tied tensors seen under both of their names.

    Args:
        checkpoints: reference, as recipes write it → the opened checkpoint.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self.checkpoints = dict(checkpoints)
        self._viewed: dict[Hashable, Parents] = {}
        self._plans: dict[Hashable, tuple[Step, ...]] = {}

    @classmethod
    def open(cls, references: Sequence[str], *, offline: bool = False, base_folder: Path | None = None) -> Parents:
        """Resolve and open every reference; headers are read, weights are not.

        Args:
            references: folders, zoo models or Hub ids; the same words that recipes use.
            offline: look for Hub ids in the local cache only.
            base_folder: what relative folders are relative to, before the current folder.

        Raises:
            CheckpointError: one or more cannot be found or read; says which, and what to do, for all of them.
        """
        opened: dict[str, Checkpoint] = {}
        failures: list[str] = []
        for reference in dict.fromkeys(references):
            try:
                folder = resolve(reference, offline=offline, base_folder=base_folder)
                opened[reference] = Checkpoint(folder, reference)
            except CheckpointError as error:
                failures.append(str(error))
        if failures:
            raise CheckpointError("\n".join(failures))
        return cls(opened)

    def __getitem__(self, reference: str) -> Checkpoint:
        if reference not in self.checkpoints:
            opened = ", ".join(map(repr, self.checkpoints))
            raise CheckpointError(f"the recipe names {reference!r}, which is not among the opened parents: {opened}")
        return self.checkpoints[reference]

    @cached_property
    def tied(self) -> dict[str, dict[str, str]]:
        """Reference → {name: the stored tensor that this model uses under that name too}."""
        return {reference: tied_tensors(checkpoint) for reference, checkpoint in self.checkpoints.items()}

    def untied(self, references: Sequence[str]) -> frozenset[str]:
        """Return the names that some of these models tie and others store: a merge of them is untied."""
        stored = {reference: self[reference].tensors for reference in references}
        aliases = {alias for reference in stored for alias in self.tied[reference]}
        return frozenset(
            alias
            for alias in aliases
            if any(alias in names and alias not in self.tied[reference] for reference, names in stored.items())
        )

    def tensor_names(self, references: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return reference → names of its tensors, as a merge of these models sees them.

        A tied name counts only where another of the models stores it. Buffers that models recompute are left
        out.
        """
        untied = self.untied(references)
        return {
            reference: tuple(
                name
                for name in sorted(set(self[reference].tensors) | set(self.tied[reference]))
                if (name not in self.tied[reference] or name in untied) and not name.endswith(RECOMPUTED)
            )
            for reference in references
        }

    def info(self, reference: str, name: str) -> TensorInfo | None:
        """Return what the header says of a tensor, through a tie if need be; None if the model lacks it."""
        return self[reference].tensors.get(self.tied[reference].get(name, name))

    def tensor(self, reference: str, name: str) -> torch.Tensor:
        """Return a tensor of one model as a view of its file, through a tie if need be."""
        return self[reference].tensor(self.tied[reference].get(name, name))

    def viewed(self, recipe: Recipe) -> Parents:
        """Return the parents as the recipe sees them: with one vocabulary, neurons aligned, where it asks for that.

        Remembered for recipes that differ in their numbers only, as those of a search do.

        Raises:
            ConfigError: what the recipe asks for cannot be had from these parents.
        """
        key = (_layout(recipe), *(repr(getattr(recipe, field)) for field in VIEWED))
        if key not in self._viewed:
            seen: Mapping[str, Checkpoint] = {reference: self[reference] for reference in recipe.parents()}
            unchanged = dict(seen)
            for view in VIEWS:
                seen = view(recipe, seen)
            self._viewed[key] = self if dict(seen) == unchanged else Parents({**self.checkpoints, **seen})
        return self._viewed[key]

    def plan(self, recipe: Recipe) -> tuple[Step, ...]:
        """Return a step for every tensor of the merged model, in the model's order.

        Remembered for recipes that differ in their numbers only, as those of a search do.

        Raises:
            ConfigError: the recipe does not fit the parents' layers.
        """
        key = _layout(recipe)
        if key not in self._plans:
            planned = plan(recipe, self.tensor_names(recipe.parents()))
            count = 1 + max((tensor.layer for tensor in planned if tensor.layer is not None), default=-1)
            self._plans[key] = tuple(self._step(tensor, count) for tensor in planned)
        return self._plans[key]

    def _step(self, planned: PlannedTensor, num_layers: int) -> Step:
        infos = {entry.model: self.info(entry.model, entry.tensor) for entry in planned.inputs}
        found = {model: info for model, info in infos.items() if info is not None}
        inputs = {entry.model: entry.tensor for entry in planned.inputs if entry.model in found}
        dtype = reduce(torch.promote_types, (info.dtype for info in found.values()))
        return Step(planned, inputs, next(iter(found.values())).shape, dtype, num_layers)

    def problems(self) -> list[Problem]:
        """Return every reason why these models cannot be merged with each other, whatever the recipe."""
        checkpoints = list(self.checkpoints.values())
        found = compatibility.config_problems(checkpoints)
        found += compatibility.tokenizer_problems(checkpoints)
        names = self.tensor_names(list(self.checkpoints))
        first, *others = self.checkpoints
        for other in others:
            if self[other].num_layers != self[first].num_layers:
                what = f"{first} has {self[first].num_layers} layers, {other} has {self[other].num_layers}"
                found.append(Problem(what, other, "merge models of one size, or stack layers with slices"))
                continue
            found += compatibility.missing_tensors(first, names[first], other, names[other])
            for name in sorted(set(names[first]) & set(names[other])):
                infos = {reference: self.info(reference, name) for reference in (first, other)}
                found += compatibility.shape_problems(name, {r: i.shape for r, i in infos.items() if i})
        return list(dict.fromkeys(found))


def _layout(recipe: Recipe) -> Hashable:
    """Return what decides which tensors a merge reads: models, layers and bases, not the numbers."""
    parts = tuple(
        (
            at,
            tuple(entry.model for entry in part.models or ()),
            tuple((e.base_model, tuple((s.model, s.layer_range) for s in e.sources)) for e in part.slices or ()),
        )
        for at, part in recipe.parts()
    )
    return recipe.base_model, parts
