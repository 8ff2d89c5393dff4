"""Writing a model folder: sharded safetensors, streamed, and complete or absent.

Everything goes into a hidden folder beside the destination, which takes its name in one rename at the very
end.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from evomerge.checkpoints.headers import INDEX, NAMES, SINGLE
from evomerge.errors import ConfigError, ExportError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def parse_size(text: str | int) -> int:
    """Return the bytes that ``5GB``, ``200MiB`` or ``1000000`` means.

    Raises:
        ConfigError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", str(text).upper())
    if match is None or (size := int(float(match[1]) * UNITS[match[2] or ""])) <= 0:
        raise ConfigError(f"{text!r} is no size; write it as 5GB, 200MB or a number of bytes")
    return size


class CheckpointWriter:
    """Writes the tensors of one model, in any order, one at a time, straight to their place on disk.

    Use it as a context manager: leaving the block renames the finished folder to ``out``; an exception
    removes it. Further files (config, tokenizer) go into ``folder`` before that.

    Args:
        out: the folder to make; must not exist, or be empty.
        tensors: what will be written; fixes the shards.
        max_shard_size: bytes, or a size such as "5GB"; a tensor larger than that gets a shard of its own.

    Raises:
        ExportError: ``out`` exists and is not empty, cannot be created, or the disk is too small.
    """

    def __init__(self, out: Path, tensors: Sequence[TensorSpec], max_shard_size: str | int = "5GB") -> None:
        self.out = Path(out).absolute()
        self._specs = {spec.name: spec for spec in tensors}
        _check_destination(self.out)
        self.folder = _partial_folder(self.out)
        self._check_space(sum(spec.num_bytes for spec in tensors))
        shards = _shards(tensors, parse_size(max_shard_size))
        self._positions: dict[str, tuple[Path, int]] = {}
        for number, shard in enumerate(shards, start=1):
            name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._positions |= _begin_shard(self.folder / name, shard)
        if len(shards) > 1:
            self._write_index()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write tensor ``name``; shape and dtype must be as announced.

        Raises:
            ExportError: the tensor was not announced like this, or the disk is full.
        """
        spec = self._specs.pop(name, None)
        if spec is None or tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise ExportError(f"tensor {name!r} ({tuple(tensor.shape)}, {tensor.dtype}) was announced as {spec}")
        file, position = self._positions[name]
        data: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        try:
            with file.open("r+b") as stream:
                stream.seek(position)
                stream.write(data)
        except OSError as error:
            raise ExportError(f"{file}: writing failed: {error.strerror}; nothing was left at {self.out}") from error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._specs:
            error = ExportError(f"{len(self._specs)} tensors were never written: {', '.join(sorted(self._specs)[:3])}")
        if error is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            if kind is None:
                raise error
            return
        for path in (p for p in self.folder.rglob("*") if p.is_file()):
            _sync(path)
        self.folder.rename(self.out)
        _sync(self.out.parent)

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            self.folder.rmdir()
            place = f"the disk of {self.out.parent}"
            raise ExportError(f"the model needs {needed / 1e9:.2f} GB, {place} has {free / 1e9:.2f} GB free")

    def _write_index(self) -> None:
        total = sum(spec.num_bytes for spec in self._specs.values())
        where = {name: file.name for name, (file, _) in sorted(self._positions.items())}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Sequence[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in tensors:
        if shards[-1] and size + spec.num_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.num_bytes
    return shards


def _begin_shard(file: Path, tensors: Sequence[TensorSpec]) -> Mapping[str, tuple[Path, int]]:
    """Write the header and reserve the data; return where each tensor goes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    position = 0
    for spec in sorted(tensors, key=lambda spec: -spec.dtype.itemsize):  # widest first keeps all data aligned
        stop = position + spec.num_bytes
        header[spec.name] = {
            "dtype": NAMES[spec.dtype],
            "shape": spec.shape,
            "data_offsets": [position, stop],
        }
        offsets[spec.name], position = position, stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + position)
    return {name: (file, 8 + len(text) + offset) for name, offset in offsets.items()}


def _check_destination(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; name a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        raise ExportError(f"{out} exists and is not empty; name another folder or remove it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{out.parent} cannot be created: {error.strerror}; choose another place") from error


def _partial_folder(out: Path) -> Path:
    """Make the folder to write into, and remove those that killed processes of this machine left."""
    prefix = f".{out.name}.partial-{socket.gethostname()}-"
    try:
        for stale in out.parent.glob(f"{prefix}*"):
            if not _alive(stale.name.removeprefix(prefix)):
                shutil.rmtree(stale, ignore_errors=True)
        folder = out.parent / f"{prefix}{os.getpid()}"
        folder.mkdir()
    except OSError as error:
        hint = "it is read-only" if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) else error.strerror
        raise ExportError(f"cannot write into {out.parent}: {hint}; choose another place") from error
    return folder


def _alive(process: str) -> bool:
    if not process.isdigit():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
