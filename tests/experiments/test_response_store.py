"""Stored responses: a line each, whatever a crash or a full disk leaves at the end of the file."""

import json
import os
import random
from pathlib import Path

import pytest

from evomerge.errors import RunError
from evomerge.experiments import lines
from evomerge.experiments.response_store import ResponseStore
from evomerge.fitness import Responses, TaskResponses
from evomerge.workers import Outcome

ODD = 'a "quoted",\n"responses":{} 日本語\u2028'


def outcome(number: int) -> Outcome:
    task = TaskResponses(("one", ODD), {"acc,none": [number / 3, None]}, gold={ODD: 0.1})
    return Outcome(Responses({"t": task}, 1.5).to_json(), seconds=number / 7, worker=ODD, device="cpu", batch_size=3)


def hashed(number: int) -> str:
    return f"{number:016x}"


def filled(folder: Path, count: int, digest: str | None = "d") -> ResponseStore:
    store = ResponseStore(folder, "search", digest)
    for number in range(count):
        store.write(hashed(number), outcome(number))
    return store


def test_what_is_written_is_read_back_by_who_wrote_it_and_by_others(tmp_path: Path) -> None:
    writer = filled(tmp_path / "new", 5)
    for store in (writer, ResponseStore(tmp_path / "new", "search"), ResponseStore(tmp_path / "new", "search", "d")):
        assert list(store) == [hashed(number) for number in range(5)]
        assert [store.read(hashed(number)) for number in range(5)] == [outcome(number) for number in range(5)]
        assert store.read(hashed(5)) is None
    entries = [json.loads(line) for line in writer.path.read_bytes().split(b"\n")[:-1]]
    assert [entry["responses"]["tasks"]["t"]["values"]["acc,none"][0] for entry in entries] == [n / 3 for n in range(5)]


def test_a_reader_sees_what_is_added_and_what_is_removed(tmp_path: Path) -> None:
    reader = ResponseStore(tmp_path, "search", "d")
    assert list(reader) == []
    writer = filled(tmp_path, 2)
    assert reader.read(hashed(1)) == outcome(1)
    writer.write(hashed(1), outcome(8))
    assert reader.read(hashed(1)) == outcome(8)
    writer.path.unlink()
    assert list(reader) == []
    writer.write(hashed(4), outcome(4))
    assert list(reader) == list(writer) == [hashed(4)]


def test_what_was_stored_with_other_items_is_not_there(tmp_path: Path) -> None:
    quoted = 'd {"batch":2,"日本":"\\"}'  # as the digests of races are
    filled(tmp_path, 2, quoted)
    ResponseStore(tmp_path, "search", "e").write(hashed(1), outcome(7))
    assert ResponseStore(tmp_path, "search", quoted).read(hashed(1)) == outcome(1)
    assert ResponseStore(tmp_path, "search", "e").read(hashed(0)) is None
    assert ResponseStore(tmp_path, "search").read(hashed(1)) == outcome(7)


@pytest.mark.parametrize("seed", range(20))
def test_a_torn_last_line_is_cut_and_nothing_else_is_lost(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = filled(tmp_path, 4).path
    content = path.read_bytes()
    begin = content.rstrip(b"\n").rfind(b"\n") + 1
    end = draw.randint(begin, len(content) - 1)
    tail = b"" if seed % 2 else b"\0" * draw.randint(1, 9000)
    path.write_bytes(content[:end] + tail)
    store = ResponseStore(tmp_path, "search", "d")
    assert list(store) == [hashed(number) for number in range(3)]
    store.write(hashed(9), outcome(9))
    assert path.read_bytes().startswith(content[:begin] + b'{"recipe":"%s"' % hashed(9).encode())
    for reader in (store, ResponseStore(tmp_path, "search")):
        assert [reader.read(hashed(n)) for n in (0, 1, 2, 9)] == [outcome(n) for n in (0, 1, 2, 9)]
        assert reader.read(hashed(3)) is None


def test_a_write_that_fails_half_way_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, 2)
    before = store.path.read_bytes()

    def half(descriptor: int, data: memoryview) -> int:
        monkeypatch.undo()
        os.write(descriptor, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lines.os, "write", half)
    with pytest.raises(RunError, match=r"cannot write .*search\.jsonl: .*No space left.*; free some space"):
        store.write(hashed(2), outcome(2))
    assert store.path.read_bytes() == before
    store.write(hashed(2), outcome(2))
    assert ResponseStore(tmp_path, "search").read(hashed(2)) == outcome(2)
