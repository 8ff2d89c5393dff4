"""Pickled weights, for models that the user allows by name: nothing but tensors is unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.headers import TensorInfo, read_index
from evomerge.errors import CheckpointError

SINGLE_PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"


class PickledFiles:
    """Files of ``torch.save``, opened by PyTorch's restricted unpickler, which makes tensors and runs no code.

    Files in the zip format (PyTorch 1.6 and later) are mapped into memory; older ones are read whole and kept, so
    that memory grows with them.

    Args:
        files: every file of the model.

    Raises:
        CheckpointError: a file is damaged, or holds more than tensors.
    """

    def __init__(self, files: list[Path]) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self._loaded: dict[Path, Mapping[str, torch.Tensor]] = {}
        self._mapped: set[Path] = set()
        for file in files:
            for name, tensor in self._load(file).items():
                shape = tuple(tensor.shape)
                self.tensors[name] = TensorInfo(name, shape, tensor.dtype, file, 0, tensor.nbytes)
        self.tensors = dict(sorted(self.tensors.items()))

    def tensor(self, info: TensorInfo) -> torch.Tensor:
        """Return the tensor, contiguous, as a view of its file where that is possible."""
        return self._load(info.file)[info.name].detach().contiguous()

    def release(self) -> None:
        """Forget the mappings; a file is unmapped once no view of it is left."""
        for file in self._mapped:
            self._loaded.pop(file, None)

    def _load(self, file: Path) -> Mapping[str, torch.Tensor]:
        if file not in self._loaded:
            loaded, mapped = _read(file)
            self._loaded[file] = loaded
            if mapped:
                self._mapped.add(file)
        return self._loaded[file]


def pickled_files(folder: Path) -> list[Path]:
    """Return the files of a model whose weights are pickled, in order; none if there are none.

    Raises:
        CheckpointError: the index cannot be read, or a shard is missing.
    """
    if (folder / PICKLE_INDEX).is_file():
        return [folder / name for name in sorted(set(read_index(folder / PICKLE_INDEX).values()))]
    return [folder / SINGLE_PICKLE] if (folder / SINGLE_PICKLE).is_file() else []


def _read(file: Path) -> tuple[Mapping[str, torch.Tensor], bool]:
    """Return the tensors of a file, and whether they are mapped."""
    try:
        try:
            loaded, mapped = _unpickle(file, mmap=True), True
        except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
            loaded, mapped = _unpickle(file, mmap=False), False
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file}: cannot be unpickled safely: {reason}; convert it to safetensors") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in loaded.items()
    ):
        raise CheckpointError(f"{file}: holds more than named tensors; convert it to safetensors")
    return loaded, mapped


def _unpickle(file: Path, *, mmap: bool) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
