"""TensorBoard: event files in ``RUN/tensorboard``, which ``tensorboard --logdir runs`` shows."""

from __future__ import annotations

import json
import time
from typing import Any

from evomerge.loggers.base import LOGGERS, Ending, LoggerEntry, Step, ToolRun
from evomerge.loggers.kept_step import read_step, write_step

FLUSH_SECONDS = 10.0


class TensorBoardLogger:
    """Writes one event a trial, which holds all its numbers.

    The kept step is that of the last flush. What a killed process wrote after it is logged again, and the new
    session's ``purge_step`` tells readers to drop the first copy.
    """

    def __init__(self, run: ToolRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        self._kept = folder / "next_step"
        self.next_step = read_step(self._kept)
        self._done, self._flushed = self.next_step, time.monotonic()
        self._writer: Any = SummaryWriter(str(folder), purge_step=self.next_step)
        if not self.next_step:
            text = json.dumps(run.config, indent=2, ensure_ascii=False)
            self._writer.add_text("experiment", "\n".join(f"    {line}" for line in text.splitlines()))

    def log(self, step: Step) -> None:
        """Write a step; at most ``FLUSH_SECONDS`` later it can be seen."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in step.numbers.items()]
        self._writer.file_writer.add_summary(Summary(value=values), step.number, step.time)
        self._done = step.number + 1
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def close(self, ending: Ending) -> None:
        """Write the winner and the names of the files as text, and flush."""
        if ending.summary:
            lines = [f"- {name}: {value}" for name, value in ending.summary.items()]
            lines += [f"- {path}" for path in ending.files]
            self._writer.add_text("winner", "\n".join(lines), max(0, self._done - 1))
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.flush()
        write_step(self._kept, self._done)
        self._flushed = time.monotonic()


LOGGERS.add("tensorboard", LoggerEntry("TensorBoard", "tensorboard", TensorBoardLogger), origin=__name__)
