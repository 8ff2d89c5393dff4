"""Tensors as views of memory-mapped safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.headers import TensorInfo
from evomerge.errors import CheckpointError


class MappedFiles:
    """Files that are mapped into memory when a tensor of theirs is first asked for.

    The mapping is private: writing to a view changes neither the file nor other processes.
    """

    def __init__(self) -> None:
        self._mapped: dict[Path, torch.UntypedStorage] = {}

    def tensor(self, info: TensorInfo) -> torch.Tensor:
        """Return the tensor as a view of its file, in the file's dtype.

        Raises:
            CheckpointError: the file is gone or cannot be mapped.
        """
        storage = self._storage(info.file)
        if info.start % info.dtype.itemsize:  # files of old writers; a view needs aligned data
            data = torch.empty(0, dtype=torch.uint8).set_(storage, info.start, (info.stop - info.start,), (1,))
            return data.clone().view(info.dtype).reshape(info.shape)
        offset = info.start // info.dtype.itemsize
        return torch.empty(0, dtype=info.dtype).set_(storage, offset, info.shape, _strides(info.shape))

    def release(self) -> None:
        """Forget the mappings; a file is unmapped once no view of it is left."""
        self._mapped.clear()

    def _storage(self, file: Path) -> torch.UntypedStorage:
        if file not in self._mapped:
            try:
                size = file.stat().st_size
                mapped: Any = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size)
            except (OSError, RuntimeError) as error:
                raise CheckpointError(f"{file}: cannot be mapped into memory: {error}") from error
            self._mapped[file] = mapped
        return self._mapped[file]


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides))[: len(shape)] if shape else ()
