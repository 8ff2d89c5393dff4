"""An adapter's change to a weight, kept as the two thin matrices that it is the product of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from evomerge.checkpoints.headers import TensorInfo


@dataclass(frozen=True)
class Factors:
    """The change B·A to a weight.

    Args:
        down: A, of shape (rank, inputs), float32; of rank 0 where there is no change.
        up: B, of shape (outputs, rank), float32, with the adapter's scale α / r in it.
        turned: the weight is stored as (inputs, outputs).
        start: the weight that it is a change to, as it lies in the base's file.
    """

    down: torch.Tensor
    up: torch.Tensor
    turned: bool
    start: TensorInfo

    def changes(self, base: TensorInfo | None) -> bool:
        """Return whether ``base`` is the very tensor that this is a change to."""
        start = self.start
        if base is None or (base.start, base.stop) != (start.start, start.stop):
            return False
        return base.file == start.file or base.file.resolve() == start.file.resolve()

    def to(self, device: torch.device) -> Factors:
        """Return the same on ``device``."""
        return replace(self, down=self.down.to(device), up=self.up.to(device))
