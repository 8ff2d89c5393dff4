"""What this machine has: memory, as far as it may be used, and that of its GPUs."""

from __future__ import annotations

import subprocess
from pathlib import Path

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_bytes() -> int:
    """Return the machine's memory, or what its container may use of it."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for path in LIMITS:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return total


def gpu_bytes() -> tuple[int, ...]:
    """Return the memory of each GPU; none if there is no GPU, or nobody to ask.

    The driver's own tool is asked, as torch would take some of that memory to find out.
    """
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return tuple(int(line) * 2**20 for line in answer.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
