"""One parent on disk: its config and its tensors, memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from evomerge.checkpoints.headers import TensorInfo, read_headers
from evomerge.errors import CheckpointError
from evomerge.recipes import count_layers

SAMPLES = 16  # places of a file that the fingerprint reads
SAMPLE_BYTES = 4096


class Checkpoint:
    """A model folder, opened by reading headers only.

    Tensors are views of the memory-mapped files: the pages belong to the page cache, which all processes
    share, and are read when touched. The mapping is private: writing to a view changes neither the file nor
    other processes.

    Args:
        folder: a folder with ``config.json`` and safetensors, sharded or not.
        name: what messages call it; the folder by default.

    Raises:
        CheckpointError: the folder holds no readable model; names the file and the way out.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = Path(folder)
        self.name = name or str(folder)
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.name}: no such folder: {self.folder}")
        self.config: dict[str, Any] = _read_config(self.folder)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(read_headers(self.folder))
        self._mapped: dict[Path, torch.UntypedStorage] = {}
        self._views: dict[str, torch.Tensor] = {}

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r}, {len(self.tensors)} tensors, {self.num_bytes / 1e9:.3f} GB)"

    def tensor(self, name: str) -> torch.Tensor:
        """Return tensor ``name`` as a view of the mapped file, in the file's dtype.

        Raises:
            CheckpointError: there is no such tensor, or its file is gone.
        """
        if name not in self._views:
            if name not in self.tensors:
                raise CheckpointError(f"{self.name}: has no tensor {name!r}")
            self._views[name] = self._view(self.tensors[name])
        return self._views[name]

    def _view(self, info: TensorInfo) -> torch.Tensor:
        storage = self._storage(info.file)
        if info.start % info.dtype.itemsize:  # files of old writers; a view needs aligned data
            data = torch.empty(0, dtype=torch.uint8).set_(storage, info.start, (info.stop - info.start,), (1,))
            return data.clone().view(info.dtype).reshape(info.shape)
        offset = info.start // info.dtype.itemsize
        return torch.empty(0, dtype=info.dtype).set_(storage, offset, info.shape, _strides(info.shape))

    def _storage(self, file: Path) -> torch.UntypedStorage:
        if file not in self._mapped:
            try:
                size = file.stat().st_size
                mapped: Any = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size)
            except (OSError, RuntimeError) as error:
                raise CheckpointError(f"{file}: cannot be mapped into memory: {error}") from error
            self._mapped[file] = mapped
        return self._mapped[file]

    @property
    def num_layers(self) -> int:
        """Number of layers that the tensors' names speak of."""
        return count_layers(self.tensors)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.stop - info.start for info in self.tensors.values())

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the config, a header, a file's size or sampled weights."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for info in self.tensors.values():
            digest.update(f"{info.name} {info.shape} {info.dtype} {info.file.name} {info.start}\n".encode())
        for file in sorted({info.file for info in self.tensors.values()}):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as stream:
                for sample in range(SAMPLES):
                    stream.seek(sample * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
                    digest.update(stream.read(SAMPLE_BYTES))
        return digest.hexdigest()[:16]

    def check_finite(self) -> list[str]:
        """Return the names of the tensors that hold a NaN or an infinity; reads every weight once."""
        return [name for name in self.tensors if not _all_finite(self.tensor(name))]


def _all_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)  # a NaN anywhere makes both NaN; twenty times faster than isfinite
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides))[: len(shape)] if shape else ()


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "a LoRA adapter" if (folder / "adapter_config.json").is_file() else "no model folder"
        raise CheckpointError(f"{folder}: {found}: config.json is missing; name a folder of a whole model") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}); copy or download it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found a {type(config).__name__}")
    return config
