"""Rows of vocabulary tensors, brought into the order of a merged vocabulary as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch

from evomerge.checkpoints import Checkpoint, CheckpointView, StoredFactors, TensorInfo

Read = Callable[[str, str], torch.Tensor]


@dataclass(frozen=True)
class RowCopies:
    """How one model's tensor with the merged vocabulary's rows is made; rows that nothing is said of are zero.

    Args:
        shape: of the tensor that is made.
        dtype: of the tensor that is made.
        axis: which axis counts tokens.
        copied: (model, rows of the result, rows of that model's tensor), each int64 (n,).
        averaged: rows of the result that are means; int64 (n,).
        terms: model → for each averaged row, its row in that model, -1 where it has none; int64 (n,).
        padding: rows of the result that are the mean of all the others; int64 (n,).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int
    copied: tuple[tuple[str, torch.Tensor, torch.Tensor], ...]
    averaged: torch.Tensor
    terms: Mapping[str, torch.Tensor]
    padding: torch.Tensor

    def made(self, name: str, read: Read) -> torch.Tensor:
        """Return tensor ``name``, from the models' own tensors, which ``read(model, name)`` returns.

        Means are taken in float32, or in float64 if that is the dtype, and rounded once.
        """
        shape = list(self.shape)
        rows = shape.pop(self.axis)
        given = sum(len(to) for _, to, _ in self.copied) + len(self.averaged) + len(self.padding)
        made = (torch.empty if given == rows else torch.zeros)((rows, *shape), dtype=self.dtype)
        for model, to, where in self.copied:
            _copy_rows(read(model, name).movedim(self.axis, 0), where, made, to)
        if len(self.averaged):
            made[self.averaged] = self._means(name, read, made)
        if len(self.padding):
            kept = torch.ones(rows, dtype=torch.bool)
            kept[self.padding] = False
            made[self.padding] = made[kept].mean(0)
        return made.movedim(0, self.axis).contiguous()

    def _means(self, name: str, read: Read, made: torch.Tensor) -> torch.Tensor:
        precise = torch.promote_types(self.dtype, torch.float32)
        total = torch.zeros((len(self.averaged), *made.shape[1:]), dtype=precise)
        count = torch.zeros((len(self.averaged), *(1 for _ in made.shape[1:])), dtype=precise)
        for model, where in self.terms.items():
            has = where >= 0
            total[has] += read(model, name).movedim(self.axis, 0)[where[has]].to(self.dtype).to(precise)
            count[has] += 1
        return (total / count).to(self.dtype)

    def digest(self) -> bytes:
        """Return bytes that change with what is copied where."""
        found = hashlib.sha256(repr((self.shape, self.dtype, self.axis)).encode())
        for model, to, where in self.copied:
            found.update(model.encode() + to.numpy().tobytes() + where.numpy().tobytes())
        for model, where in self.terms.items():
            found.update(model.encode() + where.numpy().tobytes())
        found.update(self.averaged.numpy().tobytes() + self.padding.numpy().tobytes())
        return found.digest()


def _copy_rows(source: torch.Tensor, where: torch.Tensor, target: torch.Tensor, to: torch.Tensor) -> None:
    """Copy rows ``where`` of ``source`` to rows ``to`` of ``target``; runs of rows, as most are, by faster ways."""
    target_run, source_run = _run(to), _run(where)
    if target_run is None:
        target[to] = source[where].to(target.dtype)
    elif source_run is not None:
        target[target_run].copy_(source[source_run])
    elif source.dtype == target.dtype:
        torch.index_select(source, 0, where, out=target[target_run])
    else:
        target[target_run].copy_(source[where])


def _run(rows: torch.Tensor) -> slice | None:
    """Return the slice that these rows are, None if they are not one run."""
    if not len(rows) or int(rows[-1] - rows[0]) != len(rows) - 1 or not bool((rows.diff() == 1).all()):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1)


class VocabularyView(CheckpointView):
    """A checkpoint with the rows of a merged vocabulary.

    Args:
        source: the model that is seen.
        config: its config with the merged vocabulary's size and ids.
        copies: tensor → how it is made; the others pass through.
        untied: names that the model shares with another tensor, and is seen to store → that tensor.
        read: returns a tensor of one of the models as it is stored.
        others: what the fingerprint depends on besides: the fingerprints of models that rows are taken from.
        vocabulary: the merged vocabulary, for those who write or load its tokenizer.
    """

    def __init__(
        self,
        source: Checkpoint,
        config: dict[str, Any],
        copies: Mapping[str, RowCopies],
        untied: Mapping[str, str],
        read: Read,
        others: Mapping[str, Checkpoint],
        vocabulary: Any,
    ) -> None:
        super().__init__(source)
        self.config = config
        self.vocabulary = vocabulary
        self._copies = copies
        self._untied = untied
        self._read = read
        self._others = others
        made = {name: _info(name, each, source) for name, each in copies.items()}
        shared = {name: replace(source.tensors[each], name=name) for name, each in untied.items()}
        self.tensors = MappingProxyType(dict(sorted({**source.tensors, **shared, **made}.items())))

    def tensor(self, name: str) -> torch.Tensor:
        """Return tensor ``name`` with the merged vocabulary's rows.

        Raises:
            CheckpointError: there is no such tensor, or its file is gone.
        """
        if name in self._copies:
            return self._copies[name].made(name, self._read)
        return super().tensor(self._untied.get(name, name))

    def factors(self, name: str) -> StoredFactors | None:
        """Return the source's factors of tensors that count no tokens."""
        return None if name in self._copies or name in self._untied else self.source.factors(name)

    def release(self) -> None:
        """Forget what is mapped into memory, of the models that rows are taken from too."""
        super().release()
        for other in self._others.values():
            other.release()

    @property
    def fingerprint(self) -> str:
        """The source's fingerprint, those of the models that rows are taken from, and which rows they are."""
        digest = hashlib.sha256(self.source.fingerprint.encode())
        for name, copies in sorted(self._copies.items()):
            digest.update(name.encode() + copies.digest())
            for model in sorted({model for model, *_ in copies.copied} | set(copies.terms)):
                digest.update(self._others[model].fingerprint.encode())
        return digest.hexdigest()[:16]


def _info(name: str, copies: RowCopies, source: Checkpoint) -> TensorInfo:
    size = torch.Size(copies.shape).numel() * copies.dtype.itemsize
    file = source.tensors[name].file if name in source.tensors else source.folder
    return TensorInfo(name, copies.shape, copies.dtype, file, 0, size)
