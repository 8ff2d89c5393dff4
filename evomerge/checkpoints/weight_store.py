"""Weights that can be made again, in files that the processes of a machine share within a budget of bytes.

A stored model is one safetensors file, mapped into memory by whoever opens it. The system keeps a mapped file that is
removed until its last reader lets go, so any process may evict at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.headers import TensorInfo, read_tensors_and_metadata
from evomerge.checkpoints.locking import locked
from evomerge.checkpoints.mapping import MappedFiles
from evomerge.checkpoints.progress import sync
from evomerge.checkpoints.writer import TensorSpec, bytes_of, layout, write_at
from evomerge.errors import CheckpointError

SUFFIX = ".safetensors"
CONFIG = "config"  # the header's field with the model's config
SLACK = 0.05  # share of the budget that a process writes between two looks at what all of them have written
STALE_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class StoredWeights:
    """The weights of one model: headers, mapped tensors, and its config."""

    infos: Mapping[str, TensorInfo]
    tensors: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]


class WeightStore:
    """Weights by name.

    Args:
        folder: a folder of this store within ``root``; made when first written to.
        root: of all stores that share the budget.
        limit: bytes of all files below ``root``; the least recently used go first. Exceeded by what was written since
            the last look, a twentieth by each process.
    """

    def __init__(self, folder: Path, root: Path, limit: int) -> None:
        self._folder, self._root, self._limit = folder, root, limit
        self._unseen = float(limit)  # bytes written since the last look; the first file is followed by one

    def open(self, name: str) -> StoredWeights | None:
        """Return the weights kept under ``name``, which stay valid when they are evicted; None if there are none."""
        file = self._file(name)
        try:
            os.utime(file)  # it counts as used now; an evicted one is missed here
            infos, metadata = read_tensors_and_metadata(file)
            mapped = MappedFiles()
            tensors = {each: mapped.tensor(info) for each, info in infos.items()}
            return StoredWeights(infos, tensors, json.loads(metadata[CONFIG]))
        except FileNotFoundError:
            return None
        except (OSError, KeyError, ValueError, CheckpointError):
            # Evicted by another process between two of these lines, or damaged: it can be made again.
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            return None

    def holds(self, size: int) -> bool:
        """Whether a model of so many bytes fits into the budget at all."""
        return size <= self._limit

    def write(
        self,
        name: str,
        specs: Sequence[TensorSpec],
        config: Mapping[str, Any],
        tensors: Iterable[tuple[str, torch.Tensor]],
    ) -> StoredWeights | None:
        """Keep weights under ``name`` and return them; the file appears whole. None if it was evicted at once.

        Raises:
            OSError: it cannot be written, for instance because the disk is full; nothing is left behind.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self._file(name)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        header, places, size = layout(specs, {CONFIG: json.dumps(config)})
        try:
            with partial.open("wb") as stream:
                stream.truncate(size)
            write_at(partial, 0, memoryview(header))
            for each, tensor in tensors:
                write_at(partial, places[each], bytes_of(tensor))
            sync(partial)  # else a power cut could leave a file of the right size with zeros in it
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        stored = self.open(name)
        self._unseen += size
        if self._unseen >= SLACK * self._limit:
            self._unseen = 0
            evict(self._root, self._limit)
        return stored

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[None]:
        """Hold ``name``, so that no other process makes the same weights; without a lock where none can be had."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                stack.enter_context(locked(self._file(name).with_suffix(".lock")))
            yield

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"


def evict(root: Path, limit: int) -> None:
    """Remove the least recently used weights below ``root`` until these take ``limit`` bytes at most, and leftovers."""
    found: list[tuple[float, int, Path]] = []
    for path in root.glob("*/*"):
        with contextlib.suppress(OSError):  # another process evicts as well
            status = path.stat()
            if path.suffix == SUFFIX:
                found.append((status.st_mtime, status.st_size, path))
            elif time.time() - status.st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        total -= size
