"""Which tensors of a checkpoint a specification speaks of, and whether two models' neurons correspond at all."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from evomerge.checkpoints import Checkpoint, tied_tensors
from evomerge.checkpoints.skeleton import skeleton
from evomerge.errors import CheckpointError, MergeError
from evomerge.merging.alignment.specification import Specification, TensorAxes


def stored_names(specification: Specification, checkpoint: Checkpoint) -> dict[str, str]:
    """Return name in the specification → name in the checkpoint, for all tensors of the specification that it has.

    Old files lack a model's prefix ("h.0." for "transformer.h.0."), or call a norm's weight gamma: names correspond
    if transformers loads them into the same weight.

    Raises:
        CheckpointError: the checkpoint lacks a tensor that the model has, other than one tied to another.
    """
    found = {name: name for name in checkpoint.tensors if name in specification.tensors}
    left = set(specification.tensors) - set(found)
    if left and (built := skeleton(checkpoint)) is not None:
        others = Counter(built.name_of(name)[0] for name in checkpoint.tensors if name not in found)
        once = {
            built.name_of(name)[0]: name
            for name in checkpoint.tensors
            if name not in found and others[built.name_of(name)[0]] == 1
        }
        found |= {name: once[made] for name in left if (made := built.name_of(name)[0]) in once}
    missing = set(specification.tensors) - set(found)
    if missing and (missing := missing - set(tied_tensors(checkpoint))):
        raise CheckpointError(f"align: {checkpoint.name} lacks {min(missing)}, which a model of its config has")
    return found


def fitted(specification: Specification, checkpoint: Checkpoint) -> Specification:
    """Return the specification for a checkpoint's own shapes, where these differ in what is not permuted.

    So an embedding may have more rows than the config says.

    Raises:
        MergeError: a tensor's shape is not that of its groups.
    """
    names = stored_names(specification, checkpoint)
    tensors: dict[str, TensorAxes] = {}
    for name, axes in specification.tensors.items():
        if name not in names:
            continue
        shape = checkpoint.tensors[names[name]].shape
        dimensions = list(axes.dimensions)
        expected = specification.shape(name)
        for place, (has, wants) in enumerate(zip(shape, expected, strict=True)):
            if has != wants and axes.fixed(place):
                dimensions[place] = ((has,),)
            elif has != wants:
                what = f"{checkpoint.name}: tensor {names[name]} is {shape}, by the config it is {expected}"
                raise MergeError(f"align: {what}")
        tensors[name] = replace(axes, dimensions=tuple(dimensions))
    return replace(specification, tensors=tensors)


def restricted(specification: Specification, tensors: set[str]) -> Specification:
    """Return the specification with some of its tensors only."""
    kept = {name: axes for name, axes in specification.tensors.items() if name in tensors}
    return replace(specification, tensors=kept)


def check_correspondence(
    ours: Specification, own: Specification, target: Checkpoint, source: Checkpoint, method: str
) -> None:
    """Refuse models whose groups are not the same; their sizes may differ for ot_fusion.

    Raises:
        MergeError: says which tensor or group differs.
    """
    both = f"{target.name} and {source.name}"
    if odd_ones := set(ours.groups) ^ set(own.groups):
        odd = min(odd_ones)
        raise MergeError(f"align: the neurons of {both} do not correspond: only one of them has {odd}")
    for name, group in ours.groups.items():
        size = own.groups[name].size
        if size != group.size and method != "ot_fusion":
            what = f"{group.size} neurons in {target.name}, {size} in {source.name} ({name})"
            raise MergeError(f"align: {what}; {method} permutes equally many, ot_fusion carries over more or fewer")
