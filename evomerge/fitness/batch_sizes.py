"""Batch sizes: how many sequences a forward pass takes, found by trying where it is not given."""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MOST = 256
ROOM = 0.7  # share of the free memory that batches may take
GAIN = 1.05  # sequences a second that twice the batch must give to be worth it


@dataclass(frozen=True)
class Cost:
    """What a batch took: seconds, and the bytes that it needed at its peak."""

    seconds: float
    num_bytes: int


def best_batch_size(cost: Callable[[int], Cost | None], room: int, most: int = MOST) -> int:
    """Return the smallest power of two that is about as fast as any that fits.

    Sizes are doubled until the next would not fit, or two doublings in a row gain less than 5%.

    Args:
        cost: of a batch of so many of the longest sequences; None if it does not fit.
        room: bytes that a batch may take.
        most: the largest size worth trying.
    """
    speeds: dict[int, float] = {}
    size, best = 1, 1
    while size <= most:
        found = cost(size)
        if found is None:
            break
        speeds[size] = size / max(found.seconds, 1e-9)
        if speeds[size] > GAIN * speeds[best]:
            best = size
        if size >= 4 * best or 2 * found.num_bytes > room:
            break
        size *= 2
    return best


class Peak:
    """The most memory that was taken while this was entered, beyond what was taken before, in bytes.

    On the CPU of systems that cannot forget a former peak, what stays below that is not seen.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self.num_bytes = device, 0

    def __enter__(self) -> Peak:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            _forget_peak()
        self._before = self._most()
        return self

    def __exit__(self, *_: object) -> None:
        self.num_bytes = max(0, self._most() - self._before)

    def _most(self) -> int:
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else _status("VmHWM")


def room(device: torch.device) -> int:
    """Return the bytes that batches may take on a device."""
    if device.type == "cuda":
        return int(ROOM * torch.cuda.mem_get_info()[0])
    import psutil

    return int(ROOM * psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is a lack of memory."""
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch, on the CPU
            return True
        error = error.__cause__ or error.__context__
    return False


def free_memory() -> None:
    """Give back what a failed batch held."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Remembered:
    """Batch sizes found on this machine before: a small file for each model, task and device.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, *key: str) -> int | None:
        """Return the size found for the key, None if there is none."""
        try:
            return int(json.loads(self._file(key).read_text(encoding="utf-8"))["batch_size"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, size: int, *key: str) -> None:
        """Keep a size, if the disk allows."""
        file = self._file(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"batch_size": size, "key": key}), encoding="utf-8")
        except OSError:
            return

    def _file(self, key: tuple[str, ...]) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Give a function that returns the seconds since, of work that is done."""
    began = time.perf_counter()

    def seconds() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    yield seconds


def model_key(model: Any) -> str:
    """Return what tells models apart that may need other batches: configuration and dtype."""
    return hashlib.sha256(f"{model.config.to_json_string()} {model.dtype}".encode()).hexdigest()


def _forget_peak() -> None:
    """Have Linux count the process's peak memory from now on."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _status(field: str) -> int:
    """Return a size from /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)
