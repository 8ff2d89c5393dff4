"""One set of tensor names for models that different versions of a library wrote.

The same model has ``h.0.attn.c_attn.weight`` in one file and ``transformer.h.0.attn.c_attn.weight`` in another, a gamma
here and a weight there, its experts one by one or in one tensor. Which names mean the same is asked of
transformers, which loads both (see `evomerge.checkpoints.skeleton`). Nothing is written; tensors are renamed, or fused,
as they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.factors import StoredFactors
from evomerge.checkpoints.headers import TensorInfo
from evomerge.checkpoints.skeleton import Skeleton, skeleton
from evomerge.checkpoints.view import CheckpointView

Sources = Mapping[str, tuple[str, ...]]


def one_naming(checkpoints: Mapping[str, Checkpoint]) -> Mapping[str, Checkpoint]:
    """Return the checkpoints, those that name their tensors otherwise than the first one with its names.

    Where some store a tensor whole that others store in pieces (experts), it is seen whole in all of them. Names that
    mean nothing to the first model's class stay as they are.

    Args:
        checkpoints: reference → checkpoint. Returned unchanged if all have the same names.
    """
    if not checkpoints:
        return checkpoints
    first, *others = checkpoints.values()
    if all(other.tensors.keys() == first.tensors.keys() for other in others):
        return checkpoints
    known = skeleton(first)
    if known is None:
        return checkpoints
    whole = {
        name for each in checkpoints.values() for name, pattern in map(known.name_of, each.tensors) if pattern is None
    }
    names: dict[str, str] = {}  # the model's name → the first checkpoint's
    for stored in first.tensors:
        name, pattern = known.name_of(stored)
        if pattern is None:
            names.setdefault(name, stored)
    return {reference: _view(each, known, names, whole) for reference, each in checkpoints.items()}


def _view(checkpoint: Checkpoint, known: Skeleton, names: Mapping[str, str], whole: set[str]) -> Checkpoint:
    renamed: dict[str, str] = {}
    fused: dict[str, list[str]] = {}
    for stored in checkpoint.tensors:
        name, pattern = known.name_of(stored)
        if pattern is not None and name in whole:
            fused.setdefault(name, []).append(stored)
        elif pattern is None and name in known.shapes:
            new = names.get(name, name if name in known.tied else stored)
            renamed[new if new == stored or new not in checkpoint.tensors else stored] = stored
        else:
            renamed[stored] = stored
    if not fused and all(new == old for new, old in renamed.items()):
        return checkpoint
    return RenamedCheckpoint(checkpoint, known, renamed, {name: tuple(sources) for name, sources in fused.items()})


class RenamedCheckpoint(CheckpointView):
    """A checkpoint under other names.

    Args:
        source: the checkpoint that is seen.
        known: what transformers knows of the model.
        renamed: name → the source's name.
        fused: name → the source's tensors that it is made of.
    """

    def __init__(self, source: Checkpoint, known: Skeleton, renamed: Mapping[str, str], fused: Sources) -> None:
        super().__init__(source)
        self._known = known
        self._renamed = renamed
        self._fused = {target: pieces for name, pieces in fused.items() for target in self._targets(name, pieces)}
        self._first = {target: name for name, pieces in fused.items() for target in self._targets(name, pieces)}
        seen = {new: replace(source.tensors[old], name=new) for new, old in renamed.items()}
        self.tensors = seen | {name: self._info(name) for name in self._fused}

    def tensor(self, name: str) -> torch.Tensor:
        """Return tensor ``name``; one that the file stores in pieces is made anew each time.

        Raises:
            CheckpointError: there is no such tensor, or its file is gone.
        """
        if name not in self._fused:
            return self.source.tensor(self._renamed.get(name, name))
        return self._convert(name, {piece: self.source.tensor(piece) for piece in self._fused[name]})

    def factors(self, name: str) -> StoredFactors | None:
        """Return the source's factors of tensor ``name``, if it is stored in one piece."""
        return None if name in self._fused else self.source.factors(self._renamed.get(name, name))

    def _targets(self, name: str, pieces: tuple[str, ...]) -> tuple[str, ...]:
        shapes = {piece: torch.empty(self.source.tensors[piece].shape, device="meta") for piece in pieces}
        pattern = self._known.name_of(pieces[0])[1]
        return tuple(self._known.convert(name, str(pattern), shapes))

    def _convert(self, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        pattern = self._known.name_of(next(iter(tensors)))[1]
        return self._known.convert(self._first[name], str(pattern), tensors)[name]

    def _info(self, name: str) -> TensorInfo:
        pieces = [self.source.tensors[piece] for piece in self._fused[name]]
        dtype = pieces[0].dtype
        made = self._convert(name, {each.name: torch.empty(each.shape, dtype=dtype, device="meta") for each in pieces})
        shape = tuple(made.shape)
        return replace(pieces[0], name=name, shape=shape, start=0, stop=made.numel() * dtype.itemsize)
