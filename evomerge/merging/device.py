"""Parents' tensors on the device where merging runs: kept there as long as they fit, streamed through pinned memory
where they do not."""

from __future__ import annotations

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.merging.parents import Parents

SHARE = 0.8  # of the device's free memory that parents may take
STAGE = 1 << 26  # bytes of each of the two pinned buffers


class OnDevice:
    """Hands out parents' tensors on one device.

    Args:
        device: where they are wanted. On the CPU they are views of the parents' files.
        max_bytes: how much of the device's memory to keep them in; most of what is free by default.
    """

    def __init__(self, device: torch.device, max_bytes: int | None = None) -> None:
        self._device = device
        self._kept: dict[tuple[Checkpoint, str], torch.Tensor] = {}
        self._left = max_bytes or 0
        self._stages: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        if device.type == "cuda":
            self._left = int(SHARE * torch.cuda.mem_get_info(device)[0]) if max_bytes is None else max_bytes
            self._stages = [
                (torch.empty(STAGE, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in range(2)
            ]

    def tensor(self, parents: Parents, model: str, name: str) -> torch.Tensor:
        """Return a tensor of one of the parents."""
        if self._device.type == "cpu":
            return parents.tensor(model, name)
        key = (parents[model], name)
        if key not in self._kept:
            moved = self._moved(parents.tensor(model, name))
            if moved.nbytes > self._left:
                return moved
            self._left -= moved.nbytes
            self._kept[key] = moved
        return self._kept[key]

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor on the device; one buffer is filled while the other is on its way."""
        if not self._stages:
            return tensor.to(self._device)
        moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        source, target = (each.reshape(-1).view(torch.uint8) for each in (tensor.contiguous(), moved))
        for number, start in enumerate(range(0, source.numel(), STAGE)):
            stage, sent = self._stages[number % 2]
            piece = source[start : start + STAGE]
            sent.synchronize()
            stage[: piece.numel()].copy_(piece)
            target[start : start + STAGE].copy_(stage[: piece.numel()], non_blocking=True)
            sent.record()
        return moved
