"""The in-place engine of a search: one resident model whose weights each merge overwrites.

transformers is imported when a model is built: what only reads the table of methods should not wait for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from evomerge.checkpoints.tokenizers import GENERATION_CONFIG, TOKENIZER_FILES
from evomerge.errors import MergeError
from evomerge.merging.device import OnDevice
from evomerge.merging.parents import Parents
from evomerge.merging.preparations import Preparations, shared_folder
from evomerge.merging.tensors import Numbers, merge_tensor, merge_tensors, numbers
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

    Attributes:
        model: the resident model, in eval mode; the same object after each merge.
        tokenizer: the base's tokenizer, None if it has none.

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
    ) -> None:
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        self._parents = parents
        self._preparations = prepared or Preparations(shared_folder())
        self._written: dict[str, tuple[Parents, Numbers]] = {}
        self._dtype = getattr(torch, dtype) if dtype else _usual_dtype(parents, base)
        folder = parents[base].folder
        references = list(parents.checkpoints)
        self._untied = parents.untied(references)
        self._config = AutoConfig.from_pretrained(folder)
        if self._untied:  # before building: the flag decides which parameters the model has
            self._config.tie_word_embeddings = False
        names = parents.tensor_names(references)[base]
        tensors = {name: parents.tensor(base, name) for name in names}
        built: Any = self._build(tensors)  # its stubs do not know that `to` takes a name
        self.model: PreTrainedModel = built.to(device)
        if (folder / GENERATION_CONFIG).is_file():
            self.model.generation_config = GenerationConfig.from_pretrained(folder)
        has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
        self.tokenizer = AutoTokenizer.from_pretrained(folder) if has_tokenizer else None
        self._targets = _targets(self.model, tensors)
        self._on_device = OnDevice(torch.device(device))

    @torch.no_grad()
    def merge(self, recipe: Recipe) -> None:
        """Overwrite the model's weights with the recipe's; tensors whose numbers did not change are left as they are.

        Raises:
            MergeError: the recipe makes a model of another shape, or a tensor cannot be merged.
            ConfigError: the recipe does not fit the parents' layers.
        """
        if self._targets is None:
            self._load(dict(merge_tensors(recipe, self._parents, preparations=self._preparations)))
            return
        seen = self._parents.viewed(recipe)
        steps = seen.plan(recipe)
        fetch = partial(self._on_device.tensor, seen)
        for step in steps:
            target = self._targets.get(step.name)
            if target is None or target.shape != step.shape:
                raise MergeError(f"the recipe makes a tensor {step.name} {step.shape}, the resident model has none")
            chosen = numbers(recipe, step)
            if self._written.pop(step.name, None) != (seen, chosen):
                merge_tensor(chosen, step, seen, self._preparations, out=target, fetch=fetch)
            self._written[step.name] = (seen, chosen)
        written = {step.name for step in steps}
        self._copy_tied(written)
        if missing := set(self._targets) - written:
            raise MergeError(f"the recipe leaves {len(missing)} tensors of the resident model unset: {min(missing)}")

    def _copy_tied(self, written: set[str]) -> None:
        """Fill names that are untied in the resident model, but tied in all of the recipe's parents."""
        targets = self._targets or {}
        for pairs in self._parents.tied.values():
            for alias in sorted(set(pairs) & set(targets) - written):
                targets[alias].copy_(targets[pairs[alias]])
                written.add(alias)

    def _load(self, tensors: dict[str, torch.Tensor]) -> None:
        for pairs in self._parents.tied.values():
            for alias in self._untied & set(pairs) - set(tensors):
                tensors[alias] = tensors[pairs[alias]]
        built = dict(self._build(tensors).state_dict(keep_vars=True))
        for name, target in self.model.state_dict(keep_vars=True).items():
            if built[name].shape != target.shape:
                raise MergeError(f"the recipe makes {name} {tuple(built[name].shape)}, not {tuple(target.shape)}")
            target.copy_(built[name])

    def _build(self, tensors: Mapping[str, torch.Tensor]) -> PreTrainedModel:
        import transformers

        model_class: Any = getattr(
            transformers, (self._config.architectures or [""])[0], transformers.AutoModelForCausalLM
        )
        # Copies: transformers makes parameters of the very tensors it is given, and ours are views of the
        # parents.
        state = {name: tensor.clone() for name, tensor in tensors.items()}
        with _quiet():
            try:
                model, info = model_class.from_pretrained(
                    None, config=self._config, state_dict=state, dtype=self._dtype, output_loading_info=True
                )
            except (RuntimeError, ValueError, KeyError) as error:
                raise MergeError(f"transformers cannot build {model_class.__name__} from the base: {error}") from error
        if info["missing_keys"]:
            raise MergeError(
                f"the parents lack weights that {model_class.__name__} has: {sorted(info['missing_keys'])}"
            )
        return model.eval().requires_grad_(False)


def _usual_dtype(parents: Parents, base: str) -> torch.dtype:
    sizes: Counter[torch.dtype] = Counter()
    for info in parents[base].tensors.values():
        if info.dtype.is_floating_point:
            sizes[info.dtype] += info.stop - info.start
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _targets(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Return checkpoint name → the model's tensor; None unless all correspond by name and value."""
    state = model.state_dict(keep_vars=True)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        target = state.get(name, state.get(f"{model.base_model_prefix}.{name}"))
        if target is None or target.shape != tensor.shape:
            return None
        if not torch.equal(target.detach().cpu(), tensor.to(target.dtype)):
            return None
        found[name] = target
    covered = {target.data_ptr() for target in found.values()}
    if len(covered) < len(found) or any(target.data_ptr() not in covered for target in state.values()):
        return None
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bar and load report off the terminal."""
    from transformers.utils import logging

    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
