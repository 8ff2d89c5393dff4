"""The in-place engine of a search: one resident model whose weights each merge overwrites.

transformers is imported when a model is built: what only reads the table of methods should not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.errors import MergeError
from evomerge.merging.device import OnDevice
from evomerge.merging.folding import stream_norms
from evomerge.merging.parents import Parents, Step
from evomerge.merging.preparations import Preparations, shared_folder
from evomerge.merging.resident import ResidentModel, Target
from evomerge.merging.routed import Layers, RoutedStep, Router
from evomerge.merging.tensors import Numbers, Sums, merge_tensor, model_sums, numbers
from evomerge.merging.tokenizer_files import generation_fields, merged_tokenizer
from evomerge.recipes import PathStep, Recipe, layer_of, path_of, routed_recipe, with_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class InPlaceMerger:
    """A resident model into which recipes are merged, one after the other.

    Tensors of a checkpoint and parameters of a model need not have the same names: transformers may fuse or
    rename them while loading. Where each tensor of the base is found again, by name and by value, in the
    built model, a merge writes straight into the parameters; where not, it merges the checkpoint's tensors
    and loads them the way transformers loads a file, which is slower.

    Args:
        parents: every model that the recipes may name.
        base: reference of the parent whose config, tokenizer and generation config the model has.
        dtype: of the resident model ("float32", "bfloat16", "float16"); the base checkpoint's by default. The
            weights equal those of `merge_to_folder` bit for bit if this dtype holds the recipe's.
        device: where the model lives and merging runs.
        spread: lay the model's layers over all GPUs of this process.
        prepared: what depends on the parents alone; shared with the other processes of this machine by default.
        like: a recipe that names the models and the vocabulary of those to come, where the models' own differ.

    Attributes:
        model: the resident model, in eval mode; the same object after each merge.
        tokenizer: the merged models' tokenizer, None if they have none.
        layers: reference → the layers of a parent that paths have gone through.

    Raises:
        MergeError: transformers cannot build the model from the base.
    """

    def __init__(
        self,
        parents: Parents,
        *,
        base: str,
        dtype: str | None = None,
        device: str = "cpu",
        prepared: Preparations | None = None,
        like: Recipe | None = None,
        spread: bool = False,
    ) -> None:
        from transformers import GenerationConfig

        like = like or Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": base}]})
        self._parents = parents = parents.viewed(like)
        self._preparations = prepared or Preparations(shared_folder())
        self._written: dict[str, tuple[Parents, Numbers]] = {}
        self._base, self._device = base, device
        self._resident = ResidentModel(parents, base, dtype, device, spread=spread)
        self._router: Router | None = None
        self.layers: dict[str, Layers] = {}
        self.model: PreTrainedModel = self._resident.model
        self._dtype = str(self.model.dtype).removeprefix("torch.")
        if (fields := generation_fields(like, parents.checkpoints)) is not None:
            self.model.generation_config = GenerationConfig.from_dict(fields)
        self.tokenizer = merged_tokenizer(like, parents.checkpoints)
        self._spread = spread
        self._on_devices: dict[torch.device, OnDevice] = {}

    @torch.no_grad()
    def merge(self, recipe: Recipe, members: Mapping[str, Checkpoint] = MappingProxyType({})) -> None:
        """Overwrite the model's weights with the recipe's; tensors whose numbers did not change are left as they are.

        A path through layers of several parents copies no weights: the model's layers are replaced by steps that share
        the parents' memory, and its own layers come back with the next recipe that is no path.

        Args:
            recipe: what to merge.
            members: reference → model of the trials that the recipe names as sources (`Members.of`).

        Raises:
            MergeError: the recipe makes a model of another shape, or a tensor cannot be merged.
            ConfigError: the recipe does not fit the parents' layers.
        """
        if self._router is not None:
            self._router.restore()
        path = path_of(recipe)
        if path is not None and self._spread:
            raise MergeError("a path through layers runs on one GPU: set workers.devices_per_worker to 1 or less")
        if path is None:
            seen = self._parents.with_members(members).viewed(recipe)

            def fetch(model: str, name: str) -> torch.Tensor:
                return self._on(self.model.device).tensor(seen, model, name)

            # What is prepared of members is of no use to other recipes.
            prepared = Preparations() if members else self._preparations
            planned = [(recipe, seen, step) for step in seen.plan(recipe)]
            self._merge(planned, prepared, model_sums(recipe, seen, fetch))
            return
        if self._router is None:
            self._router = Router(self.model)
        # The model's own layers are its base's, which a path may go through too; the rest is as the recipe says.
        ends = [path[0]._replace(layer=0, scale=1.0), path[-1]._replace(layer=0, scale=1.0)]
        outside = routed_recipe(ends, outside=recipe.outside, dtype=recipe.dtype)
        base = routed_recipe([PathStep(self._base, n) for n in range(self._router.depth)], dtype=recipe.dtype)
        steps = [(outside, step) for step in self._parents.plan(outside) if step.planned.layer is None]
        steps += [(base, step) for step in self._parents.plan(base) if step.planned.layer is not None]
        self._merge([(part, self._parents, step) for part, step in steps], self._preparations)
        self._router.route([self._step(step) for step in path], self._norms(path))

    def _norms(self, path: Sequence[PathStep]) -> dict[str, float]:
        if all(step.scale == 1 for step in path):
            return {}
        names = {model: self._parents[model].tensors for model in (self._base, *(step.model for step in path))}
        merged = [name for name in names[self._base] if layer_of(name) is None]
        for number, step in enumerate(path):
            merged += [with_layer(name, number) for name in names[step.model] if layer_of(name) == step.layer]
        return stream_norms(self._parents[self._base].config, [step.scale for step in path], merged)

    def _step(self, step: PathStep) -> RoutedStep:
        layers = self._layers_of(step.model)
        if step.layer >= len(layers.modules):
            raise MergeError(f"{step.model!r} has no layer {step.layer}; it has {len(layers.modules)}")
        return RoutedStep(layers, step.layer, step.scale)

    def _layers_of(self, reference: str) -> Layers:
        """Return a parent's layers on the device; loaded when a path first goes through them."""
        assert self._router is not None
        if reference == self._base:
            return self._router.own
        if reference not in self.layers:
            loaded = ResidentModel(self._parents, reference, self._dtype, self._device)
            self.layers[reference] = Layers.of(loaded.model)
        return self.layers[reference]

    def _merge(
        self, steps: Sequence[tuple[Recipe, Parents, Step]], prepared: Preparations, sums: Sums | None = None
    ) -> None:
        targets = self._resident.targets
        if targets is None:
            self._load(
                {
                    step.name: merge_tensor(numbers(recipe, step, sums=sums), step, seen, prepared)
                    for recipe, seen, step in steps
                }
            )
            return
        for recipe, seen, step in steps:
            target = targets.get(step.name)
            if target is None or target.shape != step.shape:
                raise MergeError(f"the recipe makes a tensor {step.name} {step.shape}, the resident model has none")
            if not target.parts:
                continue
            chosen = numbers(recipe, step, sums=sums)
            if self._written.pop(step.name, None) != (seen, chosen):
                out = target.buffer(chosen.out_dtype)
                fetch = partial(self._on(out.device).tensor, seen)
                merge_tensor(chosen, step, seen, prepared, out=out, fetch=fetch)
                if out is not target.whole:
                    target.write(out)
            self._written[step.name] = (seen, chosen)
        written = {step.name for _, _, step in steps}
        self._copy_tied(targets, written)
        if missing := {name for name, target in targets.items() if target.parts} - written:
            raise MergeError(f"the recipe leaves {len(missing)} tensors of the resident model unset: {min(missing)}")

    def _on(self, device: torch.device) -> OnDevice:
        """Return what hands out the parents' tensors where a part of the model lies."""
        if device not in self._on_devices:
            self._on_devices[device] = OnDevice(device)
        return self._on_devices[device]

    def _copy_tied(self, targets: Mapping[str, Target], written: set[str]) -> None:
        """Fill names that are untied in the resident model, but tied in all of the recipe's parents."""
        for pairs in self._parents.tied.values():
            for alias in sorted(set(pairs) & set(targets) - written):
                for source in targets[pairs[alias]].parts:
                    targets[alias].write(source.view)
                self._written.pop(alias, None)
                written.add(alias)

    def _load(self, tensors: dict[str, torch.Tensor]) -> None:
        for pairs in self._parents.tied.values():
            for alias in self._resident.untied & set(pairs) - set(tensors):
                tensors[alias] = tensors[pairs[alias]]
        self._resident.load(tensors)
