"""An adapter's change to a weight, kept as the two thin matrices that it is the product of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from evomerge.checkpoints.headers import TensorInfo


@dataclass(frozen=True)
class Factors:
    """The change B·A to a weight.

    Args:
        down: A, of shape (rank, inputs), float32; of rank 0 where there is no change.
        up: B, of shape (outputs, rank), float32, with the adapter's scale α / r in it.
        turned: the weight is stored as (inputs, outputs).
    """

    down: torch.Tensor
    up: torch.Tensor
    turned: bool = False


@dataclass(frozen=True)
class StoredFactors:
    """A change B·A that lies in a file: what headers say of it, before any number is read.

    Args:
        rank: columns of B, rows of A; 0 where there is no change.
        start: the weight that it is a change to, as it lies in the base's file.
        read: reads A and B.
    """

    rank: int
    start: TensorInfo
    read: Callable[[], Factors]

    def changes(self, base: TensorInfo | None) -> bool:
        """Return whether ``base`` is the very tensor that this is a change to."""
        start = self.start
        if base is None or (base.start, base.stop) != (start.start, start.stop):
            return False
        return base.file == start.file or base.file.resolve() == start.file.resolve()

    def on(self, device: torch.device) -> Factors:
        """Return A and B on ``device``.

        Raises:
            CheckpointError: they hold NaN or Inf, or their file is gone.
        """
        found = self.read()
        return Factors(found.down.to(device), found.up.to(device), found.turned)
