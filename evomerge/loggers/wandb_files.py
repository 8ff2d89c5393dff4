"""What wandb's offline files hold: its own process writes them in blocks, so a kill loses what it was handed last.

They are in LevelDB's log format (blocks of 32 KiB; records with checksum, length and kind), and hold protocol buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from evomerge.loggers.base import LoggerError

MAGIC, HEADER, BLOCK = b":W&B", 7, 32768
END, WHOLE, LAST = 0, 1, 4  # kinds of record


def offline_steps(folder: Path, run_id: str) -> int:
    """Return the first step that the offline files of a run below ``folder`` do not hold.

    Raises:
        LoggerError: a file is not of the known format.
    """
    from wandb.proto import wandb_internal_pb2

    found = -1
    for path in folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"):
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                found = max(found, record.history.step.num)
    return found + 1


def records(content: bytes) -> Iterator[bytes]:
    """Yield the whole records of a file; a torn last one is left out.

    Raises:
        LoggerError: it is not of the known format.
    """
    if content and not content.startswith(MAGIC):
        raise LoggerError("its offline files are of a format that this version does not know; start a new run with it")
    at, parts = HEADER, b""
    while at + HEADER <= len(content):
        rest = BLOCK - at % BLOCK
        if rest < HEADER:  # padding
            at += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        start, at = at + HEADER, at + HEADER + length
        if kind == END or at > len(content):
            return
        parts += content[start:at]
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""
