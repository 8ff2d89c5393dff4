"""The next step of a tool that cannot be asked for it, in a small file beside what the tool writes."""

from __future__ import annotations

import os
from pathlib import Path


def read_step(path: Path) -> int:
    """Return the step in the file; 0 if there is none."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def write_step(path: Path, step: int) -> None:
    """Replace the step in the file; it survives a killed process, not a power cut, and costs no wait for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(str(step), encoding="ascii")
    os.replace(partial, path)
