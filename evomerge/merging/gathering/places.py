"""Where a checkpoint's tensors lie in the parameters of the model that transformers builds from it.

Most tensors are a parameter under the same name. Others are fused or renamed while loading (the experts of a
mixture are one parameter in the model, three tensors for each expert in the file). Where those lie is found by sending
the numbers of the parameters' entries back through transformers' own conversion to the file's names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from evomerge.checkpoints import Checkpoint, layer_of


class Spot(NamedTuple):
    """A tensor of the checkpoint as a strided view of one parameter's flat entries."""

    parameter: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, entries: torch.Tensor) -> torch.Tensor:
        """Return the view of anything that has the parameter's entries, contiguous."""
        return entries.reshape(-1).as_strided(self.shape, self.strides, self.offset)


def spots(model: Any, checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, Spot]:
    """Return checkpoint tensor → its spot, for those that are found again by name, shape and value.

    Args:
        model: as transformers built it from the checkpoint.
        checkpoint: what it was built from.
        names: tensors of the checkpoint.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = {id(parameter): name for name, parameter in model.named_parameters()}  # one name where parameters are tied
    wanted = {name: checkpoint.tensor(name) for name in names if checkpoint.tensors[name].dtype.is_floating_point}
    found: dict[str, Spot] = {}
    for name in wanted:
        target = next((n for n in (name, f"{model.base_model_prefix}.{name}") if n in parameters), None)
        if target is not None:
            parameter = parameters[target]
            found[name] = Spot(own[id(parameter)], 0, tuple(parameter.shape), parameter.contiguous().stride())
    rest = {name: wanted[name] for name in wanted if name not in found}
    if rest:
        taken = {spot.parameter for spot in found.values()}
        found |= _converted(model, {n: p for n, p in parameters.items() if n not in taken}, rest)
    return {name: spot for name, spot in found.items() if _holds(parameters[spot.parameter], spot, wanted[name])}


def _holds(parameter: torch.Tensor, spot: Spot, tensor: torch.Tensor) -> bool:
    """Whether the parameter has the checkpoint's numbers at that spot."""
    if spot.shape != tuple(tensor.shape):
        return False
    return torch.equal(spot.view(parameter.detach().cpu()), tensor.to(parameter.dtype))


def _converted(
    model: Any, parameters: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> dict[str, Spot]:
    from transformers.core_model_loading import revert_weight_conversion

    by_layer: dict[int | None, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, parameter in parameters.items():
        by_layer[layer_of(name)][name] = parameter
    found: dict[str, Spot] = {}
    for group in by_layer.values():  # one layer at a time: the entries' numbers take more memory than the entries
        start, starts, numbered = 0, {}, {}
        for name, parameter in group.items():
            starts[name] = start
            numbered[name] = torch.arange(start, start + parameter.numel()).reshape(parameter.shape)
            start += parameter.numel() + 1  # a gap, so that a tensor fused of several parameters is no strided view
        for name, entries in revert_weight_conversion(model, numbered).items():
            short = name.removeprefix(f"{model.base_model_prefix}.")
            target = name if name in wanted else short
            spot = _spot(entries, starts) if target in wanted and entries.numel() else None
            if spot is not None:
                found[target] = spot
    return found


def _spot(entries: torch.Tensor, starts: Mapping[str, int]) -> Spot | None:
    """Return the spot whose entries have these numbers; None if they are no strided view of one parameter."""
    first = int(entries.flatten()[0])
    parameter = max((name for name in starts if starts[name] <= first), key=starts.__getitem__)
    strides = []
    expected = torch.tensor(first)
    for axis, size in enumerate(entries.shape):
        corner = [0] * entries.ndim
        corner[axis] = min(1, size - 1)
        step = int(entries[tuple(corner)]) - first
        strides.append(step)
        expected = expected.unsqueeze(-1) + step * torch.arange(size)
    if min(strides) < 0 or not torch.equal(entries, expected):
        return None
    return Spot(parameter, first - starts[parameter], tuple(entries.shape), tuple(strides))
