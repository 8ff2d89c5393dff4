"""Run the zoo's training and scoring in processes of their own, and show how far they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

import evomerge
from evomerge.errors import EvomergeError

LAST_WORDS = 15  # lines of a failed process's error output in our message


class Progress:
    """A bar for each model in a terminal, a plain line at each start and end elsewhere.

    Args:
        shown: False keeps silent.
    """

    def __init__(self, shown: bool) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Bars(*columns, console=console) if shown and console.is_terminal else None
        self._console = console if shown and not console.is_terminal else None
        self._tasks: dict[str, int] = {}
        self._lock = Lock()

    def __enter__(self) -> Progress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of ``what`` are finished; called from several threads."""
        with self._lock:
            if self._bars:
                if what not in self._tasks:
                    self._tasks[what] = self._bars.add_task(what, total=total)
                self._bars.update(self._bars.tasks[self._tasks[what]].id, completed=done)
            elif self._console and done in (1, total):
                self._console.print(f"{what}: {done}/{total}", highlight=False)


def run_all(commands: Sequence[Sequence[str]], progress: Progress, *, threads: int) -> None:
    """Run ``python -m COMMAND`` for each command at the same time and wait for all.

    A process prints ``WHAT DONE TOTAL`` lines, which go to ``progress``; without a reader, its next line ends it.

    Raises:
        EvomergeError: one failed; the others are ended first.
    """
    processes = [_start(command, threads) for command in commands]
    try:
        words: list[list[str]] = [[] for _ in processes]
        readers = [Thread(target=_read, args=(process, progress), daemon=True) for process in processes]
        for process, last in zip(processes, words, strict=True):
            readers.append(Thread(target=_collect, args=(process.stderr, last), daemon=True))
        for reader in readers:
            reader.start()
        for process, command, last in zip(processes, commands, words, strict=True):
            if process.wait() != 0:
                said = "\n".join(last[-LAST_WORDS:])
                raise EvomergeError(f"`python -m {' '.join(command)}` ended with code {process.returncode}:\n{said}")
        for reader in readers:
            reader.join()
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(command: Sequence[str], threads: int) -> subprocess.Popen[str]:
    source = str(Path(evomerge.__file__).parent.parent)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # threads that spin would take the cores from others on a busy machine
        "CUDA_VISIBLE_DEVICES": "",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def _read(process: subprocess.Popen[str], progress: Progress) -> None:
    for line in process.stdout or ():
        what, done, total = line.split()
        progress.update(what, int(done), int(total))


def _collect(stream: IO[str] | None, lines: list[str]) -> None:
    lines.extend(line.rstrip() for line in stream or ())
