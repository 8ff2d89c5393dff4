"""What depends on the parents alone, computed once and kept between merges."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch


class Preparations:
    """Prepared state by key, up to a number of bytes; beyond that it is computed anew each time.

    Args:
        max_bytes: how much memory tensors of the state may take; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._kept: dict[Hashable, Any] = {}

    def get(self, key: Hashable, prepare: Callable[[], Any]) -> Any:
        """Return the state under ``key``, from ``prepare()`` if it is not kept."""
        if key in self._kept:
            return self._kept[key]
        state = prepare()
        size = _num_bytes(state)
        if self.num_bytes + size <= self.max_bytes:
            self._kept[key] = state
            self.num_bytes += size
        return state


def _num_bytes(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.nbytes
    return sum(map(_num_bytes, state)) if isinstance(state, Iterable) and not isinstance(state, str) else 0
