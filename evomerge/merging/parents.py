"""The opened parents of a recipe or an experiment, as tensors to merge."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import accumulate
from pathlib import Path

import torch

from evomerge.checkpoints import (
    Checkpoint,
    FiniteView,
    StoredFactors,
    TensorInfo,
    one_naming,
    open_checkpoint,
    tied_tensors,
)
from evomerge.errors import CheckpointError, ConfigError, Problem
from evomerge.merging import compatibility
from evomerge.merging.optional import has_no_place, is_needed
from evomerge.merging.views import VIEWS
from evomerge.merging.vocabulary import vocabulary_of
from evomerge.recipes import PlannedTensor, Recipe, find_stacks, plan

# what views depend on
VIEWED = ("dtype", "override_architecture", "tokenizer_source", "tokenizer", "align", "statistics")
RECOMPUTED = ("rotary_emb.inv_freq",)  # old files store these buffers; models compute them from their config


@dataclass(frozen=True)
class Step:
    """One tensor of a merged model: what it is made of, and what the parents' headers say of that.

    Args:
        planned: the tensor's name and place in the recipe.
        inputs: model → its tensor, for those models that have it, in the recipe's order.
        shape: of the base's tensor, or the first input's.
        dtype: the widest dtype of the inputs.
        num_layers: how many layers the merged model has, in the tensor's stack.
        misfits: models whose tensor has another shape.
        offset: how many numbers the merged model's tensors before this one have, in the order of the plan; floating
            point only.
        entries: how many all of them have.
    """

    planned: PlannedTensor
    inputs: Mapping[str, str]
    shape: tuple[int, ...]
    dtype: torch.dtype
    num_layers: int = 0
    misfits: tuple[str, ...] = ()
    offset: int = 0
    entries: int = 0

    @property
    def name(self) -> str:
        """The merged tensor's name."""
        return self.planned.name


class Parents:
    """Opened checkpoints by reference, with one set of tensor names, and tied tensors seen under both of their names.

    Args:
        checkpoints: reference, as recipes write it → the opened checkpoint.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self.checkpoints = dict(one_naming(checkpoints))
        self._viewed: dict[Hashable, Parents] = {}
        self._plans: dict[Hashable, tuple[Step, ...]] = {}
        self._surplus: dict[Hashable, tuple[PlannedTensor, ...]] = {}

    @classmethod
    def open(
        cls,
        references: Sequence[str],
        *,
        offline: bool = False,
        base_folder: Path | None = None,
        allow_pickle: Collection[str] = (),
    ) -> Parents:
        """Resolve and open every reference; headers are read, weights are not.

        Args:
            references: folders, zoo models or Hub ids, with a LoRA adapter or without; the same words that recipes use.
            offline: look for Hub ids in the local cache only.
            base_folder: what relative folders are relative to, before the current folder.
            allow_pickle: those of them whose weights may be pickled.

        Raises:
            CheckpointError: one or more cannot be found or read; says which, and what to do, for all of them.
        """
        opened: dict[str, Checkpoint] = {}
        failures: list[str] = []
        for reference in dict.fromkeys(references):
            try:
                opened[reference] = open_checkpoint(
                    reference, offline=offline, base_folder=base_folder, allow_pickle=allow_pickle
                )
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
        split = any(
            alias in names and alias not in self.tied[reference]
            for alias in aliases
            for reference, names in stored.items()
        )
        return frozenset(aliases if split else ())  # one flag of the config ties all of them or none

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

    def with_members(self, members: Mapping[str, Checkpoint]) -> Parents:
        """Return these models and some that were merged of them, which therefore have the same tensors."""
        if not members:
            return self
        joined = Parents({**self.checkpoints, **members})
        joined.tied = {**self.tied, **{reference: tied_tensors(member) for reference, member in members.items()}}
        return joined

    def factors(self, reference: str, name: str) -> StoredFactors | None:
        """Return an adapter's change to a tensor as its factors, through a tie if need be; None if it is none such."""
        return self[reference].factors(self.tied[reference].get(name, name))

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
            self._viewed[key]._viewed[key] = self._viewed[key]  # what is seen so is not changed again
        return self._viewed[key]

    def checked(self, recipe: Recipe) -> Parents:
        """Return the parents as the recipe sees them, where reading a tensor with NaN or Inf is a `CheckpointError`."""
        seen = self.viewed(recipe)
        checked = Parents({reference: FiniteView(checkpoint) for reference, checkpoint in seen.checkpoints.items()})
        checked.tied = seen.tied
        checked._viewed = {key: checked for key, parents in self._viewed.items() if parents is seen}
        return checked

    def release(self) -> None:
        """Forget what is mapped into memory, so that it no longer counts as this process's."""
        for checkpoint in self.checkpoints.values():
            checkpoint.release()

    def plan(self, recipe: Recipe) -> tuple[Step, ...]:
        """Return a step for every tensor of the merged model, in the model's order.

        Remembered for recipes that differ in their numbers only, as those of a search do.

        Raises:
            ConfigError: the recipe does not fit the parents' layers.
        """
        return self._planned(recipe)[0]

    def surplus(self, recipe: Recipe) -> tuple[PlannedTensor, ...]:
        """Return the tensors that some model has and the merged model's class has no place for: they are left out."""
        return self._planned(recipe)[1]

    def _planned(self, recipe: Recipe) -> tuple[tuple[Step, ...], tuple[PlannedTensor, ...]]:
        key = _layout(recipe)
        if key not in self._plans:
            planned = plan(recipe, self.tensor_names(recipe.parents()))
            self._surplus[key] = tuple(t for t in planned if has_no_place(recipe, self.checkpoints, t, self.has))
            dropped = {tensor.name for tensor in self._surplus[key]}
            depths: dict[str | None, int] = {}
            for tensor in planned:
                if tensor.layer is not None:
                    depths[tensor.stack] = max(depths.get(tensor.stack, 0), tensor.layer + 1)
            deepest = max(depths.values(), default=0)
            steps = [self._step(t, depths.get(t.stack, deepest)) for t in planned if t.name not in dropped]
            sizes = [math.prod(step.shape) * step.dtype.is_floating_point for step in steps]
            *offsets, entries = accumulate(sizes, initial=0)
            self._plans[key] = tuple(
                replace(step, offset=offset, entries=entries) for step, offset in zip(steps, offsets, strict=True)
            )
        return self._plans[key], self._surplus[key]

    def has(self, reference: str, name: str) -> bool:
        """Whether a model has this tensor, through a tie if need be."""
        return self.info(reference, name) is not None

    def _step(self, planned: PlannedTensor, num_layers: int) -> Step:
        infos = {entry.model: self.info(entry.model, entry.tensor) for entry in planned.inputs}
        found = {model: info for model, info in infos.items() if info is not None}
        inputs = {entry.model: entry.tensor for entry in planned.inputs if entry.model in found}
        dtype = reduce(torch.promote_types, (info.dtype for info in found.values()))
        shape = found.get(str(planned.base), next(iter(found.values()))).shape
        misfits = tuple(model for model, info in found.items() if info.shape != shape)
        return Step(planned, inputs, shape, dtype, num_layers, misfits)

    def problems(self) -> list[Problem]:
        """Return every reason why these models cannot be merged with each other, whatever the recipe."""
        checkpoints = list(self.checkpoints.values())
        found = compatibility.config_problems(checkpoints)
        if any(vocabulary_of(checkpoint) is None for checkpoint in checkpoints):
            found += compatibility.tokenizer_problems(checkpoints)
        alike = self._alike()
        names = self.tensor_names(list(self.checkpoints))
        first, *others = self.checkpoints
        for other in others:
            ours, theirs = find_stacks(names[first]), find_stacks(names[other])
            if apart := [stack for stack in ours if ours[stack] != theirs.get(stack, 0)]:
                where = f" in {apart[0]}" if len(ours) > 1 else ""
                what = f"{first} has {ours[apart[0]]} layers{where}, {other} has {theirs.get(apart[0], 0)}"
                found.append(Problem(what, other, "merge models of one size, or stack layers with slices"))
                continue
            found += self._missing(first, names[first], other, names[other])
            for name in sorted(set(names[first]) & set(names[other])):
                infos = {reference: alike.info(reference, name) for reference in (first, other)}
                found += compatibility.shape_problems(name, {r: i.shape for r, i in infos.items() if i})
        return list(dict.fromkeys(found))

    def _alike(self) -> Parents:
        """Return the models with equally many rows without a token, which merges give them; these if that cannot be."""
        models = [{"model": reference} for reference in self.checkpoints]
        try:
            return self.viewed(Recipe.model_validate({"merge_method": "linear", "models": models}))
        except ConfigError:  # unequal depths, which are told by name
            return self

    def _missing(self, first: str, ours: Sequence[str], other: str, theirs: Sequence[str]) -> list[Problem]:
        needed = {
            (owner, name)
            for owner, lacking, names in (
                (first, other, set(ours) - set(theirs)),
                (other, first, set(theirs) - set(ours)),
            )
            for name in names
            if (info := self.info(owner, name)) and is_needed(self[lacking], name, len(info.shape))
        }
        common = set(ours) & set(theirs)
        lists = {each: [*common, *(name for owner, name in needed if owner == each)] for each in (first, other)}
        return compatibility.missing_tensors(first, lists[first], other, lists[other])


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
    return recipe.base_model, parts, None if recipe.outer is None else _layout(recipe.outer)
