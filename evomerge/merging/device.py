"""Parents' tensors where merging runs, kept between merges as long as they fit.

On a GPU that is all of them; what does not fit is streamed through pinned memory. On the CPU parents are mapped files
already, and only tensors that a view makes anew each time (adapted, permuted) are worth keeping.
"""

from __future__ import annotations

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.merging.parents import Parents

CPU_BYTES = 1 << 31  # for tensors that views make
SHARE = 0.8  # of the device's free memory that parents may take
STAGE = 1 << 26  # bytes of each of the two pinned buffers


class OnDevice:
    """Hands out parents' tensors on one device.

    Args:
        device: where they are wanted.
        max_bytes: how much memory to keep them in; by default most of what a GPU has free, 2 GiB on the CPU.
    """

    def __init__(self, device: torch.device, max_bytes: int | None = None) -> None:
        self._device = device
        self._kept: dict[tuple[Checkpoint, str], torch.Tensor] = {}
        self._left = CPU_BYTES if max_bytes is None else max_bytes
        self._stages: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        if device.type == "cuda":
            self._left = int(SHARE * torch.cuda.mem_get_info(device)[0]) if max_bytes is None else max_bytes
            self._stages = [
                (torch.empty(STAGE, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in range(2)
            ]

    def tensor(self, parents: Parents, model: str, name: str) -> torch.Tensor:
        """Return a tensor of one of the parents."""
        key = (parents[model], name)
        if key in self._kept:
            return self._kept[key]
        tensor = parents.tensor(model, name)
        if self._device.type == "cpu" and _mapped(tensor):
            return tensor
        moved = self._moved(tensor)
        if moved.nbytes <= self._left and not parents[model].transient:
            self._left -= moved.nbytes
            self._kept[key] = moved
        return moved

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


def _mapped(tensor: torch.Tensor) -> bool:
    """Whether the tensor is a part of a mapped file (which holds a header too), not memory of its own."""
    return tensor.untyped_storage().nbytes() > tensor.nbytes
