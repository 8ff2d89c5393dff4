"""Writing a model folder: sharded safetensors, streamed; complete or absent; going on after a kill.

Everything goes into a hidden folder beside the destination, whose ``model`` takes the destination's name in one rename
at the very end:

    .OUT.partial/lock       held (flock) by the process that writes; the system lets go of it however that process ends
    .OUT.partial/record     what is written, and which tensors of it are complete
    .OUT.partial/model/     the model; its shards have no header, so nothing can read them, until all is written
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import torch

from evomerge.checkpoints.headers import INDEX, NAMES, SINGLE
from evomerge.checkpoints.progress import Progress, sync
from evomerge.errors import ConfigError, EvomergeError, ExportError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
SYNC_BYTES = 1 << 28  # written without waiting for the disk, at most
SYNC_SECONDS = 2.0
PIECE = 1 << 26  # bytes of one write
LOCK_ATTEMPTS = 20


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


class DiskError(ExportError):
    """The disk is full or fails; what is written is kept, and the same work goes on from there."""


class CheckpointWriter:
    """Writes the tensors of one model, in any order, one at a time, straight to their place on disk.

    Use it as a context manager: leaving the block makes the finished folder appear at ``out``. With an ``identity``,
    what was written outlives a kill, an interruption (Ctrl-C) and a full disk, and the next writer of the same identity
    goes on from there; an error of ours (`EvomergeError`), which would only come again, removes everything, and so
    does any exception without an identity. Further files (config, tokenizer) go into ``folder`` before the end.

    Args:
        out: the folder to make; must not exist, or be empty, unless it is to be replaced.
        tensors: what will be written; fixes the shards.
        max_shard_size: bytes, or a size such as "5GB"; a tensor larger than that gets a shard of its own.
        identity: names all that decides the bytes of the tensors; None to keep nothing.
        replace: put the finished folder in the place of the one at ``out``.

    Attributes:
        folder: the hidden folder that becomes ``out``.
        done: names of the tensors that an earlier writer has completed; they must not be written again.

    Raises:
        ExportError: ``out`` is not empty, cannot be created, is being written by another process, or the disk is too
            small for what is still to be written.
    """

    def __init__(
        self,
        out: Path,
        tensors: Sequence[TensorSpec],
        max_shard_size: str | int = "5GB",
        *,
        identity: str | None = None,
        replace: bool = False,
    ) -> None:
        self.out = Path(out).absolute()
        self._replace, self._resumable = replace, identity is not None
        shards = _Shards(tensors, parse_size(max_shard_size))
        self._work = _work_folder(self.out)
        self._lock = _locked(self._work, self.out)
        try:
            self.folder = self._work / "model"
            self._restore()
            self._check_destination()
            progress = Progress(self._work / "record", f"{identity} {shards.digest}")
            done = progress.done if self._resumable else set()
            self._shards, self._progress = shards, progress
            self.done = frozenset(self._prepare(done))
        except BaseException:
            self._let_go(remove=not self.folder.exists())
            raise
        self._left = shards.specs.keys() - self.done
        self._unsynced: set[Path] = set()
        self._unsynced_bytes, self._last_sync = 0, time.monotonic()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write tensor ``name``; shape and dtype must be as announced.

        Raises:
            ExportError: the tensor was not announced like this, or is written already.
            DiskError: the disk is full or fails.
        """
        spec = self._shards.specs.get(name)
        if name not in self._left or spec is None or tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise ExportError(f"tensor {name!r} ({tuple(tensor.shape)}, {tensor.dtype}) was announced as {spec}")
        file, position = self._shards.positions[name]
        try:
            write_at(self.folder / file, position, bytes_of(tensor))
            self._progress.add(name)
            self._left.discard(name)
            self._unsynced.add(self.folder / file)
            self._unsynced_bytes += spec.num_bytes
            if self._unsynced_bytes >= SYNC_BYTES or time.monotonic() - self._last_sync >= SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise self._disk_error(error) from error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._left:
            error = ExportError(f"{len(self._left)} tensors were never written: {', '.join(sorted(self._left)[:3])}")
        if error is None:
            try:
                self._finish()
            except OSError as failure:
                error = self._disk_error(failure)
                error.__cause__ = failure
        if error is None:
            self._let_go(remove=True)
            return
        final = isinstance(error, EvomergeError) and not isinstance(error, DiskError)
        self._let_go(remove=final or not self._resumable)
        if kind is None:
            raise error

    def _restore(self) -> None:
        """Bring back the folder that a writer was about to replace when it was killed."""
        former = self._work / "replaced"
        if former.exists() and not self.out.exists():
            former.rename(self.out)

    def _check_destination(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ExportError(f"{self.out} is a file; name a folder that does not exist yet")
        if self.out.is_dir() and any(self.out.iterdir()) and not self._replace:
            raise ExportError(f"{self.out} exists and is not empty; name another folder or remove it first")

    def _prepare(self, done: set[str]) -> set[str]:
        """Make the shards, keeping those of an earlier writer with these tensors done; return what is done."""
        files = {self.folder / file: size for file, size in self._shards.sizes.items()}
        kept = {f for f, size in files.items() if done and f.is_file() and f.stat().st_size == size}
        done = {name for name in done if self.folder / self._shards.positions[name][0] in kept}
        try:
            for path in self.folder.iterdir() if self.folder.exists() else ():
                if path not in kept:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            self._check_space(kept)
            self.folder.mkdir(exist_ok=True)
            self._progress.begin(done)
            for file in files.keys() - kept:
                with file.open("wb") as stream:
                    stream.truncate(files[file])
            for file in kept:  # without its length a header cannot be read
                write_at(file, 0, memoryview(bytes(8)))
        except OSError as error:
            raise self._disk_error(error) from error
        return done

    def _check_space(self, kept: set[Path]) -> None:
        total = sum(self._shards.sizes.values())
        needed = total - sum(min(file.stat().st_blocks * 512, file.stat().st_size) for file in kept)
        free = shutil.disk_usage(self._work).free
        if needed > free:
            place = f"the disk of {self.out.parent} has {free / 1e9:.2f} GB free"
            still = f", {needed / 1e9:.2f} GB of which are still to be written" if kept else ""
            raise ExportError(f"the model needs {total / 1e9:.2f} GB{still}; {place}; free some or choose another disk")

    def _sync(self) -> None:
        for file in self._unsynced:
            sync(file)
        self._progress.synced()
        self._unsynced.clear()
        self._unsynced_bytes, self._last_sync = 0, time.monotonic()

    def _finish(self) -> None:
        """Make the shards readable, and the folder appear at its place."""
        for file, header in self._shards.headers.items():
            write_at(self.folder / file, 0, memoryview(header))
        if len(self._shards.headers) > 1:
            (self.folder / INDEX).write_text(self._shards.index(), encoding="utf-8")
        for path in (p for p in (*self.folder.rglob("*"), self.folder) if not p.is_symlink()):
            sync(path)
        former = self._work / "replaced"
        if self._replace and self.out.exists():
            os.replace(self.out, former)
        try:
            os.replace(self.folder, self.out)
        except OSError:
            self._restore()
            raise
        sync(self.out.parent)

    def _let_go(self, *, remove: bool) -> None:
        if remove:
            shutil.rmtree(self._work, ignore_errors=True)  # the lock is removed while it is held
        os.close(self._lock)

    def _disk_error(self, error: OSError) -> DiskError:
        kept = "nothing was left there"
        if self._resumable:
            kept = f"what is written stays in {self._work}: free some space, and the same command goes on from there"
        return DiskError(f"writing {self.out} failed: {error.strerror or error}; {kept}")


class _Shards:
    """Which tensor goes where: computed from their names, shapes and dtypes alone."""

    def __init__(self, tensors: Sequence[TensorSpec], limit: int) -> None:
        self.specs = {spec.name: spec for spec in tensors}
        self.headers: dict[str, bytes] = {}
        self.positions: dict[str, tuple[str, int]] = {}
        self.sizes: dict[str, int] = {}
        shards = _split(tensors, limit)
        for number, shard in enumerate(shards, start=1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self.headers[file], offsets, self.sizes[file] = layout(shard)
            self.positions |= {name: (file, offset) for name, offset in offsets.items()}

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"".join(self.headers.values())).hexdigest()[:16]

    def index(self) -> str:
        """Return the text of the index that libraries read."""
        total = sum(spec.num_bytes for spec in self.specs.values())
        where = {name: file for name, (file, _) in sorted(self.positions.items())}
        return json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n"


def _split(tensors: Sequence[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in tensors:
        if shards[-1] and size + spec.num_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.num_bytes
    return shards


def layout(
    tensors: Sequence[TensorSpec], metadata: Mapping[str, str] = MappingProxyType({})
) -> tuple[bytes, Mapping[str, int], int]:
    """Return a file's header, each tensor's place in it, and its size.

    Args:
        tensors: that the file holds.
        metadata: what else the header says.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
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
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {n: start + offset for n, offset in offsets.items()}, start + position


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's numbers as a file holds them."""
    data: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


def write_at(file: Path, position: int, data: memoryview) -> None:
    """Overwrite a part of an existing file.

    Raises:
        OSError: it cannot be written, for instance because the disk is full.
    """
    descriptor = os.open(file, os.O_WRONLY)
    try:
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            while piece:
                written = os.pwrite(descriptor, piece, position)
                position, piece = position + written, piece[written:]
    finally:
        os.close(descriptor)


def _work_folder(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; name a folder that does not exist yet")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{out.parent} cannot be created: {error.strerror}; choose another place") from error
    return out.parent / f".{out.name}.partial"


def _locked(work: Path, out: Path) -> int:
    """Make the hidden folder and return a descriptor that holds its lock.

    Raises:
        ExportError: another process holds it, or the folder cannot be made.
    """
    for attempt in range(LOCK_ATTEMPTS):
        try:
            work.mkdir(exist_ok=True)
            descriptor = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempt < LOCK_ATTEMPTS - 1:
                continue  # another process has just finished and removed the folder
            hint = "it is read-only" if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) else error.strerror
            raise ExportError(f"cannot write into {out.parent}: {hint}; choose another place") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ExportError(f"another process is writing {out}; wait for it or name another folder") from error
        except OSError:
            return descriptor  # a file system without locks: two writers are then the user's business
        if _is_file(work / "lock", descriptor):
            return descriptor
        os.close(descriptor)  # its holder has just finished and removed it
    raise ExportError(f"{work} cannot be locked; choose another place")


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
