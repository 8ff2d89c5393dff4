"""The journal file after crashes, on full and on read-only disks: whole lines stay, torn ones go, nothing is mixed."""

import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from evomerge.errors import RunError
from evomerge.experiments.journal import Journal, Trial
from evomerge.experiments.journals.file import repair
from evomerge.search_spaces.genes import FloatGene
from evomerge.searchers import ObjectiveSpec

GENES = (FloatGene("w", -1.0, 1.0, 0.0),)
OBJECTIVES = (ObjectiveSpec("accuracy", "maximize"),)
FACTS = [{"name": "accuracy", "direction": "maximize", "weight": 1.0}]
NUL = b"\0"


def trial(number: int, size: int = 0) -> Trial:
    return Trial(
        number=number,
        genome={"w": number / 100},
        objectives={"accuracy": 1 / (3 + number)},
        recipe_hash=f"{number:016x}",
        worker="x" * size,
        started=datetime(2026, 1, 1, 0, 0, number),
        finished=datetime(2026, 1, 1, 0, 1, number),
    )


def journal(path: Path, count: int = 0) -> Journal:
    opened = Journal.write(path, "run", OBJECTIVES)
    opened.note("objectives", FACTS)
    opened.note("identity", {})
    for number in range(count):
        opened.append(trial(number), GENES)
    return opened


def append(opened: Journal, count: int) -> None:
    for number in range(count):
        opened.append(trial(number, 3000), GENES)


TAILS = {
    "half a line": lambda line: line[:-20],
    "half a line and its end": lambda line: line[:30] + b"\n",
    "no end of line": lambda line: line[:-1],
    "zeros": lambda line: NUL * 4096,
    "zeros in place of the line's first half": lambda line: NUL * 40 + line[40:],
    "zeros and ends of lines": lambda line: (NUL * 40 + b"\n") * 3,
    "another file's text": lambda line: b"It was a dark and stormy night;\nthe rain fell in\n\ntorrents",
    "another file's bytes": lambda line: random.Random(0).randbytes(5000) + b"\n" + random.Random(1).randbytes(50),
    "another file's JSON": lambda line: b'[1, 2]\n{"a": 3}\n"op_code"\n7\nnull\n{',
    "an empty line": lambda line: b"\n",
}


@pytest.mark.parametrize("tail", TAILS)
def test_what_a_crash_left_is_cut_off(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "journal.log"
    journal(path, 3)
    whole = path.read_bytes()
    left = TAILS[tail](whole.splitlines(keepends=True)[-1])
    path.write_bytes(whole + left)
    notes: list[str] = []
    reopened = Journal.write(path, "run", OBJECTIVES, note=notes.append)
    assert path.read_bytes() == whole
    assert notes == [f"{path}: cut off {len(left)} bytes of a line that was not finished"]
    reopened.append(trial(3), GENES)
    assert Journal.read(path).trials() == [trial(n) for n in range(4)]


def test_a_whole_journal_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    journal(path, 3)
    before = path.read_bytes()
    assert repair(path) == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [b"zeros", b"\n"])
def test_damage_before_the_last_line_is_refused_and_left(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.log"
    journal(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-2] = damage.replace(b"zeros", NUL * (len(lines[-2]) - 1) + b"\n")
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunError, match="is not a readable journal"):
        Journal.write(path, "run", OBJECTIVES)
    assert path.read_bytes() == b"".join(lines)


def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_text("not json\nat all\n")
    with pytest.raises(RunError, match="is not a readable journal"):
        Journal.write(path, "run", OBJECTIVES)
    assert path.read_text() == "not json\nat all\n"


@pytest.mark.parametrize("content", [b"", NUL * 512, b'{"op_code": 0, "worker_'])
def test_a_journal_without_a_whole_line_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(content)
    with pytest.raises(RunError, match="stopped before its first trial; resume it"):
        Journal.read(path)
    journal(path, 2)
    assert Journal.read(path).trials() == [trial(0), trial(1)]


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """Mount a disk of this size at ``folder``, or skip the test where that is not allowed."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size``: a write that would is cut short, as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_tears_no_line_and_the_process_can_go_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64):
        path = tmp_path / "disk" / "journal.log"
        opened, ballast = journal(path), tmp_path / "disk" / "ballast"
        ballast.write_bytes(b"x" * 16384)
        with pytest.raises(RunError, match="No space left on device; free some space, then resume the run"):
            append(opened, 100)
        kept = Journal.read(path).trials()
        assert kept == [trial(n, 3000) for n in range(len(kept))]
        assert len(kept) > 3
        assert path.read_bytes().endswith(b"\n")
        ballast.unlink()
        opened.append(trial(len(kept), 3000), GENES)
        assert Journal.read(path).trials() == [trial(n, 3000) for n in range(len(kept) + 1)]


@pytest.mark.parametrize("can_cut", [True, False], ids=["cut at once", "cut before the next line"])
@pytest.mark.parametrize("room", [0, 1, 100, 399])
def test_half_a_line_is_cut_before_the_next(
    tmp_path: Path, room: int, can_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.log"
    opened = journal(path, 2)
    whole = path.read_bytes()
    with monkeypatch.context() as patch, largest_file(len(whole) + room):
        if not can_cut:
            patch.setattr(os, "ftruncate", lambda *args: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(RunError, match="File too large"):
            opened.append(trial(2), GENES)
    assert path.stat().st_size == len(whole) + (0 if can_cut else room)
    assert Journal.read(path).trials() == [trial(0), trial(1)]
    opened.append(trial(2), GENES)
    assert Journal.read(path).trials() == [trial(n) for n in range(3)]


def test_a_long_half_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    opened = journal(path, 1)
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    opened.append(trial(1), GENES)
    assert Journal.read(path).trials() == [trial(0), trial(1)]


def test_facts_on_a_full_disk_are_an_error_in_words(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    opened = journal(path)
    with largest_file(path.stat().st_size + 10), pytest.raises(RunError, match=r"cannot write to .*free some space"):
        opened.note("calibration", "x" * 100)
    opened.note("calibration", [])
    assert Journal.read(path).facts()["calibration"] == []


def test_a_line_counts_only_once_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.log"
    opened, sizes, fsync = journal(path), list[int](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (sizes.append(os.fstat(descriptor).st_size), fsync(descriptor)))
    opened.append(trial(0), GENES)
    assert sizes == [path.stat().st_size]


def test_a_line_that_cannot_be_flushed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.log"
    opened, whole = journal(path, 1), path.read_bytes()

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(RunError, match="Input/output error"):
            opened.append(trial(1), GENES)
    assert path.read_bytes() == Path(path).read_bytes() == whole


def test_a_read_only_folder_can_be_read_and_is_refused_in_words(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256):
        path = tmp_path / "disk" / "journal.log"
        journal(path, 2)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        assert Journal.read(path).trials() == [trial(0), trial(1)]
        with pytest.raises(RunError, match=r"cannot open the journal .*Read-only file system"):
            Journal.write(path, "run", OBJECTIVES)


def test_times_are_kept_as_they_are_even_backwards(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    opened = journal(path)
    times = [datetime(2026, 1, 1), datetime(1970, 1, 2), datetime(2040, 6, 1, 12, 30, 0, 123456)]
    trials = [
        Trial(n, {"w": 0.0}, {"accuracy": 0.5}, "0", started=times[n], finished=times[n - 1]) for n in range(len(times))
    ]
    for each in trials:
        opened.append(each, GENES)
    assert Journal.read(path).trials() == trials
