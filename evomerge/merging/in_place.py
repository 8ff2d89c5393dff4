"""The in-place engine of a search: one resident model whose weights each merge overwrites.

transformers is imported when a model is built: what only reads the table of methods should not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from evomerge.errors import MergeError
from evomerge.merging.device import OnDevice
from evomerge.merging.parents import Parents
from evomerge.merging.preparations import Preparations, shared_folder
from evomerge.merging.resident import ResidentModel, Target
from evomerge.merging.tensors import Numbers, merge_tensor, merge_tensors, numbers
from evomerge.merging.tokenizer_files import generation_fields, merged_tokenizer
from evomerge.recipes import Recipe

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
        prepared: what depends on the parents alone; shared with the other processes of this machine by default.
        like: a recipe that names the models and the vocabulary of those to come, where the models' own differ.

    Attributes:
        model: the resident model, in eval mode; the same object after each merge.
        tokenizer: the merged models' tokenizer, None if they have none.

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
    ) -> None:
        from transformers import GenerationConfig

        like = like or Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": base}]})
        self._parents = parents = parents.viewed(like)
        self._preparations = prepared or Preparations(shared_folder())
        self._written: dict[str, tuple[Parents, Numbers]] = {}
        self._resident = ResidentModel(parents, base, dtype, device)
        self.model: PreTrainedModel = self._resident.model
        if (fields := generation_fields(like, parents.checkpoints)) is not None:
            self.model.generation_config = GenerationConfig.from_dict(fields)
        self.tokenizer = merged_tokenizer(like, parents.checkpoints)
        self._on_device = OnDevice(torch.device(device))

    @torch.no_grad()
    def merge(self, recipe: Recipe) -> None:
        """Overwrite the model's weights with the recipe's; tensors whose numbers did not change are left as they are.

        Raises:
            MergeError: the recipe makes a model of another shape, or a tensor cannot be merged.
            ConfigError: the recipe does not fit the parents' layers.
        """
        targets = self._resident.targets
        if targets is None:
            self._load(dict(merge_tensors(recipe, self._parents, preparations=self._preparations)))
            return
        seen = self._parents.viewed(recipe)
        steps = seen.plan(recipe)
        fetch = partial(self._on_device.tensor, seen)
        for step in steps:
            target = targets.get(step.name)
            if target is None or target.shape != step.shape:
                raise MergeError(f"the recipe makes a tensor {step.name} {step.shape}, the resident model has none")
            if not target.parts:
                continue
            chosen = numbers(recipe, step)
            if self._written.pop(step.name, None) != (seen, chosen):
                out = target.buffer(chosen.out_dtype)
                merge_tensor(chosen, step, seen, self._preparations, out=out, fetch=fetch)
                if out is not target.whole:
                    target.write(out)
            self._written[step.name] = (seen, chosen)
        written = {step.name for step in steps}
        self._copy_tied(targets, written)
        if missing := {name for name, target in targets.items() if target.parts} - written:
            raise MergeError(f"the recipe leaves {len(missing)} tensors of the resident model unset: {min(missing)}")

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
