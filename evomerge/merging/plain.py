"""The resident of plain tensors: a dictionary that merges overwrite, where there is no model to build."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from evomerge.errors import MergeError
from evomerge.merging.parents import Parents
from evomerge.merging.resident import Part, ResidentModel, Target, usual_dtype


class PlainTensors:
    """Tensors of the shapes that one parent has, each stored under its own name; a `ResidentModel` without a model.

    Args:
        parents: every model that will be merged into them.
        base: reference of the parent whose names and shapes they have.
        dtype: of those with floating point ("float32", "bfloat16", "float16"); the base checkpoint's by default.
        device: where they live.

    Attributes:
        model: name → tensor; the same mapping after each merge.
        dtype: of those with floating point.
        device: where they live.
        untied: no names, as nothing is shared.
        targets: name → where it lies, for all of them.
    """

    def __init__(self, parents: Parents, base: str, dtype: str | None = None, device: str = "cpu") -> None:
        self.dtype = getattr(torch, dtype) if dtype else usual_dtype(parents, base)
        self.device = torch.device(device)
        self.untied: frozenset[str] = frozenset()
        self.model: Mapping[str, torch.Tensor] = {
            name: torch.zeros(
                info.shape, dtype=self.dtype if info.dtype.is_floating_point else info.dtype, device=device
            )
            for name, info in sorted(parents[base].tensors.items())
        }
        self.targets = {name: Target(tuple(each.shape), (Part(each),)) for name, each in self.model.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the tensors of these names."""
        for name, tensor in tensors.items():
            self.targets[name].write(tensor)


def resident_of(
    parents: Parents, base: str, dtype: str | None = None, device: str = "cpu", *, spread: bool = False
) -> ResidentModel | PlainTensors:
    """Return what recipes of these parents are merged into: a model of transformers, or plain tensors.

    Which it is, the base says.

    Raises:
        MergeError: transformers cannot build the model, or plain tensors are to be spread over GPUs.
    """
    if not parents[base].is_plain:
        return ResidentModel(parents, base, dtype, device, spread=spread)
    if spread:
        raise MergeError("plain tensors have no layers to lay over GPUs: set workers.devices_per_worker to 1 or less")
    return PlainTensors(parents, base, dtype, device)
