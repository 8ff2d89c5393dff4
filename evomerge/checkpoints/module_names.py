"""From the names of a model's modules, as adapters use them, to the names that its checkpoint stores."""

from __future__ import annotations

from functools import cached_property

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.skeleton import skeleton


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
        return self._skeleton.name_of(f"{module}.weight")[0].removesuffix(".weight") in self._skeleton.turned

    @cached_property
    def _known(self) -> dict[str, str]:
        """The model's name → the stored name, of tensors that are loaded as they are."""
        assert self._skeleton is not None
        found = {name: self._skeleton.name_of(name) for name in self._checkpoint.tensors}
        return {model_name: stored for stored, (model_name, pattern) in found.items() if pattern is None}

    def _by_ending(self, parameter: str) -> str | None:
        """Return the only stored name that is ``parameter`` with components more or less at its beginning."""
        found = [
            name
            for name in self._checkpoint.tensors
            if f".{name}".endswith(f".{parameter}") or f".{parameter}".endswith(f".{name}")
        ]
        return parameter if parameter in found else found[0] if len(found) == 1 else None
