"""Prepared state: what merge methods compute once, as trees of tensors that can be cut, moved and measured.

A state is made of tensors, numbers, text and None in lists, tuples, named tuples and dictionaries. Its named tuples
are marked with `state_class`, so that states can be written to files and read back without running code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

Class = TypeVar("Class", bound=type)


def state_class(cls: Class) -> Class:
    """Mark a named tuple as part of prepared states: `torch.load` may then make one from a file."""
    torch.serialization.add_safe_globals([cls])
    return cls


@state_class
class PerEntry(NamedTuple):
    """A tensor with one number for each entry of the merged tensor; it is cut where that is cut."""

    tensor: torch.Tensor

    def cut(self, start: int, stop: int) -> torch.Tensor:
        """Return the numbers of the flat entries [start, stop)."""
        return self.tensor.reshape(-1)[start:stop]


def cut(state: Any, start: int, stop: int) -> Any:
    """Return the state as a chunk of the flat entries [start, stop) sees it.

    Whatever has a method ``cut(start, stop)``, such as `PerEntry`, gives its part; everything else is passed whole.
    """
    if hasattr(state, "cut"):
        return state.cut(start, stop)
    return _map(state, lambda inner: cut(inner, start, stop))


def to_device(state: Any, device: torch.device) -> Any:
    """Return the state with its tensors on ``device``."""
    return transform(state, lambda tensor: tensor.to(device, non_blocking=True))


def transform(state: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return the state with ``change`` applied to each of its tensors."""
    if isinstance(state, torch.Tensor):
        return change(state)
    return _map(state, lambda inner: transform(inner, change))


def num_bytes(state: Any) -> int:
    """Return the bytes of the state's tensors."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(num_bytes, inner))


def _map(state: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(state, dict):
        return {key: change(inner) for key, inner in state.items()}
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*map(change, state))
    return type(state)(map(change, state)) if isinstance(state, (list, tuple)) else state
