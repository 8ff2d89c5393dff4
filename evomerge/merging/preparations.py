"""What depends on the parents alone, computed once and kept between merges: once per node, in mapped files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints import cache_folder
from evomerge.checkpoints.locking import locked
from evomerge.merging.state import num_bytes, to_device, transform

VERSION = "2"  # raised when prepared states change, so that old files are not taken for new ones
SMALL = 1 << 14  # bytes up to which a state is not worth a file
FOLDER_BYTES = 1 << 36  # the folder's files may take so much; the least recently used go first
MEMORY_BYTES = 1 << 30  # kept in memory where files cannot be written
SUFFIX = ".prepared"


def shared_folder() -> Path:
    """Return where the workers of this machine share prepared states."""
    return cache_folder() / "prepared"


class Preparations:
    """Prepared states by key.

    A state is computed by whoever needs it first, written to a file, and mapped into memory by everybody: processes
    that merge the same parents share its pages. Where files cannot be written, states stay in memory, up to
    ``MEMORY_BYTES``; beyond that they are computed anew each time.

    Args:
        folder: where the files go; None keeps nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept: dict[Hashable, Any] = {}
        self._memory = 0
        self._tidied = False

    def get(
        self,
        key: tuple[Hashable, ...],
        fingerprints: Callable[[], Sequence[str]],
        prepare: Callable[[], Any],
        device: torch.device | str = "cpu",
    ) -> Any:
        """Return the state under ``key``, from ``prepare()`` if it is not kept.

        Args:
            key: what the state depends on; equal keys mean equal states as long as the parents are the same.
            fingerprints: returns those of the parents that the state is made from.
            prepare: computes the state.
            device: where its tensors are wanted.
        """
        if self._folder is None:
            return to_device(prepare(), torch.device(device))
        kept = (key, str(device))
        if kept in self._kept:
            return self._kept[kept]
        state, mapped = self._from_file(self._folder / f"{_digest(key, fingerprints())}{SUFFIX}", prepare)
        on_device = to_device(state, torch.device(device))
        size = 0 if mapped and torch.device(device).type == "cpu" else num_bytes(on_device)
        if self._memory + size <= MEMORY_BYTES:
            self._memory += size
            self._kept[kept] = on_device
        return on_device

    def _from_file(self, file: Path, prepare: Callable[[], Any]) -> tuple[Any, bool]:
        """Return the state and whether it is mapped from a file."""
        if not self._tidied:  # not before: most methods prepare nothing, and a folder of many files takes time
            _tidy(file.parent)
            self._tidied = True
        with contextlib.suppress(OSError), locked(file.with_suffix(".lock")):
            if file.is_file():
                with contextlib.suppress(Exception):  # whatever is wrong with the file, it can be made again
                    return _read(file), True
            state = prepare()
            if num_bytes(state) <= SMALL:
                return state, False
            try:
                _write(state, file)
            except (OSError, RuntimeError):  # a full disk; torch reports it as a RuntimeError
                return state, False
            return _read(file), True
        return prepare(), False


def _read(file: Path) -> Any:
    """Return the state in a file, mapped; nothing but tensors and the states that `prepared_state` marks is made."""
    os.utime(file)
    return torch.load(file, mmap=True, weights_only=True)


def _write(state: Any, file: Path) -> None:
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        torch.save(transform(state, _alone), partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor on the CPU with storage of its own: a file would hold all of a larger one."""
    tensor = tensor.cpu()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _digest(key: Sequence[Hashable], fingerprints: Sequence[str]) -> str:
    text = [VERSION, torch.__version__, *map(_text, key), *fingerprints]
    return hashlib.sha256("\0".join(text).encode()).hexdigest()[:32]


def _text(part: Any) -> str:
    return f"{part.__module__}.{part.__qualname__}" if callable(part) else repr(part)


def _tidy(folder: Path) -> None:
    """Make the folder, and remove what was not used for longest until it is small enough."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.scandir(folder) as entries:
            files = [(entry, entry.stat()) for entry in entries]
        if sum(status.st_size for _, status in files) > FOLDER_BYTES:
            files.sort(key=lambda each: -each[1].st_mtime)
        total, yesterday = 0, time.time() - 24 * 3600
        for entry, status in files:
            total += status.st_size
            stale = status.st_mtime < yesterday and not entry.name.endswith(SUFFIX)
            if stale or total > FOLDER_BYTES:
                Path(entry.path).unlink(missing_ok=True)
