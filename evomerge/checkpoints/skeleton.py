"""What transformers knows of a checkpoint's model without its weights: names, shapes, ties, and names of old files.

The model is built once on the "meta" device, which takes milliseconds whatever its size. This is what makes a list of
architectures needless: which names a class has, which of them it ties, and how it renames or fuses what older
versions stored is asked of the class itself.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import CheckpointError

_UNIMPORTANT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")


@dataclass(frozen=True)
class Skeleton:
    """A model of transformers without its weights.

    Args:
        class_name: its class.
        shapes: name → shape, of all that its ``state_dict`` holds, tied names included.
        tied: name → the name that it shares its tensor with, as the config says.
        prefix: what names begin with that come from a model without this one's head ("transformer", "bert").
        turned: the modules that store their weight as (in, out), as GPT-2's do.
    """

    class_name: str
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    prefix: str
    turned: frozenset[str]
    _renamings: tuple[Any, ...] = field(repr=False, compare=False)
    _converters: tuple[Any, ...] = field(repr=False, compare=False)
    _config: Any = field(repr=False, compare=False)

    def name_of(self, stored: str) -> tuple[str, str | None]:
        """Return the model's name for a tensor of a file, and what fuses, splits or turns it on loading.

        A name that the model does not know comes back as transformers would look for it. The second value is the
        pattern of the conversion (see `convert`), None for tensors that are loaded as they are.
        """
        if not self._renamings and not self._converters:
            return self._with_prefix(stored), None
        from transformers.core_model_loading import rename_source_key

        known: Any = self.shapes  # its type hint asks for a dict
        name, pattern = rename_source_key(stored, [*self._renamings], [*self._converters], self.prefix, known)
        if name not in self.shapes and stored in self.shapes:
            return self._with_prefix(stored), None
        return name, pattern

    def convert(self, name: str, pattern: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the model's tensors that tensors of a file are fused or split into, by name.

        Args:
            name: what `name_of` returned for all of them.
            pattern: what it returned for one of them.
            tensors: stored name → tensor.
        """
        from transformers.core_model_loading import dot_natural_key

        converter = copy.deepcopy(next(each for each in self._converters if pattern in each.source_patterns))
        for stored in sorted(tensors, key=dot_natural_key):
            converter.add_tensor(name, stored, self.name_of(stored)[1], tensors[stored])
        made = converter.convert(name, config=self._config)
        return {key: each[0] if isinstance(each, list) else each for key, each in made.items()}

    def _with_prefix(self, name: str) -> str:
        if not self.prefix:
            return name
        bare, longer = name.removeprefix(f"{self.prefix}."), f"{self.prefix}.{name}"
        return bare if bare != name and bare in self.shapes else longer if longer in self.shapes else name


def skeleton(checkpoint: Checkpoint) -> Skeleton | None:
    """Return what transformers knows of this model; None if it cannot build it (plain tensors, own code)."""
    if checkpoint.is_plain:
        return None
    important = {name: value for name, value in checkpoint.config.items() if name not in _UNIMPORTANT}
    try:
        return _skeleton(json.dumps(important, sort_keys=True), checkpoint.folder)
    except CheckpointError:
        return None


def model_class(config: Mapping[str, Any], name: str) -> Any:
    """Return transformers' class of a model with this config: the first of ``architectures``.

    Args:
        config: as in config.json.
        name: what messages call the model.

    Raises:
        CheckpointError: transformers has no such class; says so of models that bring their own code.
    """
    import transformers

    architecture = (config.get("architectures") or [None])[0]
    if architecture is None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal

        return transformers.AutoModelForCausalLM if config.get("model_type") in causal else transformers.AutoModel
    found = getattr(transformers, architecture, None)
    if found is not None:
        return found
    if "auto_map" in config:
        raise CheckpointError(
            f"{name}: its class {architecture} is not in transformers {transformers.__version__} but in Python files "
            "that the model brings along (auto_map in config.json); evomerge runs no code of models. Use a version "
            "of the model, or of transformers, in which the class is built in"
        )
    raise CheckpointError(
        f"{name}: transformers {transformers.__version__} has no class {architecture} "
        "(architectures in config.json); a newer version may have it"
    )


def load_config(folder: Path, name: str, fields: Mapping[str, Any] | None = None) -> Any:
    """Return transformers' config object of a model folder; with other ``fields`` where a view of it has them.

    Raises:
        CheckpointError: transformers cannot read it; says so of models that bring their own code.
    """
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return found if fields is None else type(found).from_dict(copy.deepcopy(dict(fields)))
    except Exception as error:  # configs are checked by code of each architecture
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{name}: its config needs Python files that the model brings along (auto_map in config.json); "
                "evomerge runs no code of models. Use a version of the model that transformers has built in"
            ) from error
        try:  # the config's own class reads infinities, which AutoConfig does not
            config_class = model_class(fields or {}, name).config_class
            return config_class.from_pretrained(folder)
        except Exception:
            raise CheckpointError(f"{name}: transformers cannot read its config.json: {error}") from error


@lru_cache(maxsize=64)
def _skeleton(config: str, folder: Path) -> Skeleton:
    from transformers.pytorch_utils import Conv1D

    fields = json.loads(config)
    built_by = model_class(fields, str(folder))
    with quiet():
        settings = load_config(folder, str(folder), fields)
        try:
            with torch.device("meta"):
                # A copy: some classes write into the config that they are given.
                settings = copy.deepcopy(settings)
                model = built_by.from_config(settings) if hasattr(built_by, "from_config") else built_by(settings)
        except Exception as error:  # whatever a class makes of a config that does not suit it
            raise CheckpointError(f"{folder}: transformers cannot build {built_by.__name__}: {error}") from error
    renamings, converters = _conversions(model)
    return Skeleton(
        class_name=type(model).__name__,
        shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        tied=dict(getattr(model, "all_tied_weights_keys", {})),
        prefix=model.base_model_prefix or "",
        turned=frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D)),
        _renamings=renamings,
        _converters=converters,
        _config=settings,
    )


def _conversions(model: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return transformers' renamings and conversions of old files for this model; none where it has no such table."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter
    except ImportError:
        return (), ()
    found = get_model_conversion_mapping(model)
    converters = tuple(each for each in found if isinstance(each, WeightConverter))
    return tuple(each for each in found if not isinstance(each, WeightConverter)), converters


@contextmanager
def quiet() -> Iterator[None]:
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
