"""From the names of a model's modules, as adapters use them, to the names that its checkpoint stores."""

from __future__ import annotations

from functools import cached_property

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.skeleton import load_config, model_class, quiet, skeleton
from evomerge.errors import CheckpointError


class ModuleNames:
    """Finds the stored tensor that a parameter of transformers' model is loaded from.

    Args:
        checkpoint: whose tensors are looked for.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._skeleton = skeleton(checkpoint)

    def stored(self, parameter: str) -> str | None:
        """Return the stored name, or the model's own where it is tied to a stored one; None if there is none."""
        tensors = self._checkpoint.tensors
        if self._skeleton is None:
            return self._by_ending(parameter)
        for name in (parameter, self._skeleton.name_of(parameter)[0]):
            if name in self._known:
                return self._known[name]
            if name in self._skeleton.tied:
                return name
        return parameter if parameter in tensors else None

    def is_turned(self, module: str, default: bool) -> bool:
        """Whether a module stores its weight as (in, out), as GPT-2's do; ``default`` where that is not known."""
        if self._skeleton is None:
            return default
        name = self._skeleton.name_of(f"{module}.weight")[0].removesuffix(".weight")
        return name in self._turned if self._turned is not None else default

    @cached_property
    def _known(self) -> dict[str, str]:
        """The model's name → the stored name, of tensors that are loaded as they are."""
        assert self._skeleton is not None
        found = {name: self._skeleton.name_of(name) for name in self._checkpoint.tensors}
        return {model_name: stored for stored, (model_name, pattern) in found.items() if pattern is None}

    @cached_property
    def _turned(self) -> frozenset[str] | None:
        import torch
        from transformers.pytorch_utils import Conv1D

        try:
            built_by = model_class(self._checkpoint.config, self._checkpoint.name)
            with quiet(), torch.device("meta"):
                settings = load_config(self._checkpoint.folder, self._checkpoint.name)
                model = built_by.from_config(settings) if hasattr(built_by, "from_config") else built_by(settings)
        except CheckpointError:
            return None
        return frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D))

    def _by_ending(self, parameter: str) -> str | None:
        """Return the only stored name that is ``parameter`` with components more or less at its beginning."""
        found = [
            name
            for name in self._checkpoint.tensors
            if f".{name}".endswith(f".{parameter}") or f".{parameter}".endswith(f".{name}")
        ]
        return parameter if parameter in found else found[0] if len(found) == 1 else None
