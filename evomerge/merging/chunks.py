"""Working through long tensors in pieces that fit the cache, with as many threads as torch may use.

Threads of our own, each with single-threaded torch operations, beat torch's: an operation on a piece this small is
over before torch has woken its other threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from threading import Barrier
from typing import TypeVar, cast

import torch

T = TypeVar("T")

CHUNK = 1 << 18  # entries; smaller pieces stay in faster caches, but threads then wait for the interpreter
HEAP_BLOCK = (1 << 25) - (1 << 12)  # glibc's limit is 32 MB
FUSED_CHUNK = 1 << 21  # of compiled functions, which have threads of their own and no temporaries
GPU_CHUNK = 1 << 26  # a GPU wants large pieces; this bounds its temporaries to some 256 MB each


def over_chunks(
    function: Callable[[int, int], T],
    size: int,
    device: torch.device | str = "cpu",
    entries: int = 1,
    fused: bool = False,
) -> list[T]:
    """Return ``function(start, stop)`` of every piece of ``range(size)``, in order; an empty range is one piece.

    The pieces depend on the arguments alone, never on the number of threads.

    Args:
        entries: how many entries each number of the range stands for, such as those of a row.
        fused: the function's work is compiled: larger pieces, one after the other.
    """
    on_cpu = torch.device(device).type == "cpu"
    step = max(1, piece_size(device) // max(1, entries))
    if fused:  # pieces of like length, as short ones are not worth calling a compiled function for
        step = math.ceil(size / math.ceil(size / max(step, FUSED_CHUNK)))
    pieces = [(start, min(start + step, size)) for start in range(0, max(size, 1), step)]
    threads = min(torch.get_num_threads(), len(pieces)) if on_cpu and not fused else 1
    _keep_freed_memory()
    if threads == 1:
        return [function(start, stop) for start, stop in pieces]

    results: list[T | None] = [None] * len(pieces)
    waiting = iter(enumerate(pieces))  # advancing it is one step of the interpreter, which no other thread interrupts

    def work(_: int) -> None:
        for number, (start, stop) in waiting:
            results[number] = function(start, stop)

    # One task a thread: whoever waits for many wakes up often, and the others wait for the interpreter meanwhile.
    list(_pool(torch.get_num_threads()).map(work, range(threads)))
    return cast("list[T]", results)


def piece_size(device: torch.device | str = "cpu") -> int:
    """Return how many entries a piece has, but for the last one."""
    return CHUNK if torch.device(device).type == "cpu" else GPU_CHUNK


@cache
def _keep_freed_memory() -> None:
    """Let glibc serve the pieces' temporaries from a heap that it keeps, as it does for what is at most as large as the
    largest block freed so far. Otherwise they get fresh pages each time, which takes as long as the arithmetic."""
    torch.empty(HEAP_BLOCK, dtype=torch.uint8)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    started = Barrier(threads + 1)

    def start() -> None:
        # torch keeps the number for each thread, having copied the common one when it was first asked (hence the
        # question). Ours work with 1; the common one is put back below.
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, "evomerge-merge", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)
    return pool
