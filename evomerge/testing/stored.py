"""The stored responses of a run, read, counted and cut without the code under test."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def stored_responses(run: Path, part: str = "search") -> dict[str, dict[str, Any]]:
    """Return recipe hash → the tasks' responses of one part of a run; empty where none are stored."""
    path = run / "responses" / f"{part}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {entry["recipe"]: entry["responses"]["tasks"] for entry in map(json.loads, lines)}


def keep_stored(run: Path, wanted: Callable[[str], bool], part: str = "search") -> None:
    """Forget what is stored of recipes whose hashes are not wanted."""
    path = run / "responses" / f"{part}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if wanted(json.loads(line)["recipe"])), encoding="utf-8")


def kill_after(process: subprocess.Popen[Any], run: Path, more: int, then: float) -> None:
    """Kill a driver once so many more evaluations are stored than now, and some seconds have passed, or it ended."""
    wanted = _count(run) + more
    while _count(run) < wanted and process.poll() is None:
        time.sleep(0.05)
    time.sleep(then)
    process.kill()
    process.wait()


def _count(run: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (run / "responses").glob("*.jsonl"))
