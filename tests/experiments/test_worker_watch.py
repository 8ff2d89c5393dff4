"""Who works on what: polled within limits, written for other terminals, taken back at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from evomerge.experiments.worker_watch import WorkerWatch, read_workers, watching
from evomerge.reports.progress import WorkerRow
from evomerge.workers.states import WorkerState

STATES = (
    WorkerState("node:7", "node", "cpu (1 threads)", "busy", "f" * 64, 3.0, 6, 1),
    WorkerState("", "", "", "starting", "", 9.0),
)


class Watched:
    """A watch with a clock of its own."""

    def __init__(self, path: Path) -> None:
        self.now, self.asked = 0.0, 0
        self.shown: list[Sequence[WorkerRow]] = []
        self.notes: list[str] = []
        self.watch = WorkerWatch(path, self.states, self.shown.append, self.notes.append, lambda: self.now)

    def states(self) -> tuple[WorkerState, ...]:
        self.asked += 1
        return STATES

    def poll(self, now: float) -> None:
        self.now = now
        self.watch.poll(lambda key: f"trial of {key[:3]}")


def test_news_are_shown_twice_a_second_and_written_every_other(tmp_path: Path) -> None:
    watched, path, written = Watched(tmp_path / "workers.json"), tmp_path / "workers.json", 0
    for tick in range(1000):  # 10 s
        before = path.stat().st_mtime_ns if path.exists() else 0
        watched.poll(tick / 100)
        written += path.stat().st_mtime_ns != before
    assert watched.asked == len(watched.shown) == 20
    assert written == 5


def test_what_is_written_is_read_back_with_its_age(tmp_path: Path) -> None:
    watched, path = Watched(tmp_path / "workers.json"), tmp_path / "workers.json"
    watched.poll(0.0)
    watched.poll(60.0)
    news = read_workers(path)
    assert news is not None
    assert 0 <= news.age < 5
    assert list(news.rows) == list(watched.shown[-1])
    assert news.rows[0] == WorkerRow("node:7", "node", "cpu (1 threads)", "busy", "trial of fff", 3.0, 6, 1, 6.0)
    assert (news.rows[1].phase, news.rows[1].work, news.rows[1].per_minute) == ("starting", "", 0.0)
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "written": data["written"] - 90}))
    aged = read_workers(path)
    assert aged is not None
    assert 90 <= aged.age < 95
    path.write_text(json.dumps({**data, "written": data["written"] + 1e6}))
    ahead = read_workers(path)
    assert ahead is not None
    assert ahead.age == 0, "the clock of another machine may be ahead"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"written": 1, "workers": [{"a": 1}]}', '{"workers": []}'])
def test_news_that_cannot_be_read_are_no_news(tmp_path: Path, text: str) -> None:
    assert read_workers(tmp_path / "workers.json") is None
    (tmp_path / "workers.json").write_text(text)
    assert read_workers(tmp_path / "workers.json") is None


def test_a_full_disk_is_told_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*anything: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    watched = Watched(tmp_path / "workers.json")
    for second in range(10):
        watched.poll(float(second))
    assert len(watched.shown) == 10
    assert len(watched.notes) == 1
    assert "No space left on device" in watched.notes[0]


def test_the_file_goes_with_the_run(tmp_path: Path) -> None:
    path, shown = tmp_path / "workers.json", []

    def interrupted() -> None:
        with watching(path, lambda: STATES, shown.append, shown.append) as watch:
            watch.poll(lambda key: key)
            assert path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    assert shown[-1] == []
