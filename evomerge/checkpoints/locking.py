"""A lock between processes that none of them can leave behind."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock ``file``, which is made if need be; the system drops it with the process.

    Raises:
        OSError: it cannot be made or locked.
    """
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
