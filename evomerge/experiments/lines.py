"""Files of lines, appended to one by one: each on the disk before the next is begun, and none after half a line."""

from __future__ import annotations

import os
from contextlib import suppress

BLOCK = 1 << 16  # bytes that are looked through at a time for the end of the last whole line


def append(path: str, data: bytes) -> int:
    """Append whole lines to a file durably, or leave it as it was; return where they begin.

    What a crash left after the last whole line is cut off before.

    Raises:
        OSError: they could not be written, for instance because the disk is full.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        end = _whole(descriptor)
        if end < os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, end)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except BaseException:
            with suppress(OSError):  # then the next append cuts it, or the next opening
                os.ftruncate(descriptor, end)
                os.fsync(descriptor)
            raise
        return end
    finally:
        os.close(descriptor)


def _whole(descriptor: int) -> int:
    """Return where the last whole line of an open file ends."""
    end = os.fstat(descriptor).st_size
    if end and os.pread(descriptor, 1, end - 1) == b"\n":
        return end
    while end:
        start = max(end - BLOCK, 0)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
