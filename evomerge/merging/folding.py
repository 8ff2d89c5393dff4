"""Folding of a path's scales into plain weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Factor:
    """What a tensor is multiplied by."""

    scale: float
    offset: float = 0.0

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return scale × (tensor + offset) − offset in float32."""
        return tensor.float().add(self.offset).mul(self.scale).sub(self.offset)


def factors(
    config: Mapping[str, Any], scales: Sequence[float], names: Iterable[str], *, tied: bool
) -> dict[str, Factor]:
    """Placeholder until the families are in."""
    raise NotImplementedError
