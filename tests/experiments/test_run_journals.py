"""Whole runs with their journals elsewhere, and with faults of the journal: all end with the same trials."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from evomerge.cli import cli
from evomerge.errors import ConfigError, RunError
from evomerge.experiments.compared_runs import read_run
from evomerge.experiments.front_file import read_front
from evomerge.experiments.journal import Journal
from evomerge.experiments.journals import server
from evomerge.experiments.journals.address import read_address
from evomerge.experiments.journals.server import UnreachableError, server_backend
from evomerge.experiments.response_store import ResponseStore
from evomerge.experiments.run import resume, start
from evomerge.experiments.schema import read_experiment
from evomerge.testing.servers import MissingServer, Server, free_port, postgresql_server, redis_server
from evomerge.testing.stored import kill_after, stored_responses
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment
from evomerge.workers import Outcome

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SERVERS = {"redis": redis_server, "postgresql": postgresql_server}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_experiment(tmp_path_factory.mktemp("tiny")).parent


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An undisturbed run with its journal in a file."""
    return run(folder, folder / "whole")


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Server]]:
    with ExitStack() as stack:
        running: dict[str, Server] = {}

        def get(kind: str) -> Server:
            if kind not in running:
                try:
                    running[kind] = stack.enter_context(SERVERS[kind]())  # type: ignore[operator]
                except MissingServer as missing:
                    pytest.skip(str(missing))
            return running[kind]

        yield get


@pytest.fixture(params=["redis", "postgresql"])
def running(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Server:
    return servers(request.param)


def run(folder: Path, out: Path, *overrides: str, display: SilentDisplay | None = None) -> Path:
    ended = start(read_experiment(str(folder / "experiment.yaml"), overrides), out, display or SilentDisplay())
    assert ended.finished
    return out


def outcome(run: Path) -> tuple[object, ...]:
    trials = [(t.number, t.genome, t.objectives) for t in Journal.read(run / "journal.log").trials()]
    return trials, (run / "front.jsonl").read_text(), (run / "confirmation.json").read_text()


def told(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_on_a_server_equals_one_in_a_file(folder: Path, whole: Path, running: Server) -> None:
    kind = running.url.partition(":")[0]
    out = run(folder, folder / kind, f"journal={running.url}")
    assert outcome(out) == outcome(whole)
    assert len((out / "journal.log").read_text().splitlines()) == 1
    moved = folder / f"{kind}-moved"
    out.rename(moved)  # the path of the folder is all that these need
    assert "finished, 18 of 18 trials" in told("status", moved)
    assert json.loads(told("front", moved, "--json")) == json.loads(told("front", whole, "--json"))
    assert read_run(moved).trials == tuple(Journal.read(moved / "journal.log").trials())
    told("report", moved)
    told("export", moved, folder / f"{kind}-model")
    assert (folder / f"{kind}-model" / "config.json").exists()
    assert resume(moved, SilentDisplay()).finished


def test_a_server_that_is_down_stops_a_run_before_it_makes_anything(folder: Path) -> None:
    config = read_experiment(str(folder / "experiment.yaml"), [f"journal=redis://127.0.0.1:{free_port()}/0"])
    with pytest.raises(UnreachableError, match="cannot reach the journal at redis://127"):
        start(config, folder / "down", SilentDisplay())
    assert not (folder / "down").exists()


def test_a_url_with_a_password_is_refused_and_not_repeated(folder: Path) -> None:
    for url in (
        "redis://:hunter22@host:6379/0",
        "postgresql://me:hunter22@host/db",
        "postgresql://host/db?password=hunter22",
    ):
        override = f"journal={json.dumps(url)}"
        with pytest.raises(ConfigError, match="must not hold a password") as refused:
            read_experiment(str(folder / "experiment.yaml"), [override])
        assert "hunter22" not in str(refused.value)


@pytest.mark.slow
def test_a_server_that_goes_away_for_good_loses_nothing(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 2.0)
    for kind, make in SERVERS.items():
        try:
            with make() as own:  # type: ignore[operator]
                out = folder / f"lost-{kind}"
                display = StopsAt(own, 7)
                with pytest.raises(UnreachableError, match=r"go on with `evomerge resume"):
                    run(folder, out, f"journal={own.url}", display=display)
                assert len(stored_responses(out)) >= 7
                with pytest.raises(UnreachableError, match="cannot reach the journal"):
                    resume(out, SilentDisplay())
                own.start()
                assert resume(out, SilentDisplay()).finished
                assert outcome(out) == outcome(whole)
        except MissingServer as missing:
            pytest.skip(str(missing))


class StopsAt(SilentDisplay):
    """Stops a server once a trial is told, and starts it again after some seconds if it is to."""

    def __init__(self, own: Server, number: int, away: float | None = None) -> None:
        super().__init__()
        self._server, self._number, self._away = own, number, away

    def told(self, trial: object, progress: object) -> None:
        super().told(trial, progress)
        if self.told_numbers[-1] == self._number:
            self._server.stop()
            if self._away is not None:
                threading.Timer(self._away, self._server.start).start()


@pytest.mark.slow
def test_a_run_waits_for_a_server_that_is_started_again(folder: Path, whole: Path) -> None:
    for kind, make in SERVERS.items():
        try:
            with make() as own:  # type: ignore[operator]
                display = StopsAt(own, 5, away=4.0)
                out = run(folder, folder / f"restarted-{kind}", f"journal={own.url}", display=display)
                assert outcome(out) == outcome(whole)
                assert any("server is away" in note for note in display.notes)
                assert "the journal's server is back" in display.notes
        except MissingServer as missing:
            pytest.skip(str(missing))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "evomerge", *(str(argument) for argument in arguments)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_on_servers_killed_again_and_again_end_as_if_they_never_were(
    folder: Path, whole: Path, running: Server
) -> None:
    kind = running.url.partition(":")[0]
    out, moments = folder / f"killed-{kind}", random.Random(kind)
    for _ in range(4):
        begun = (out / "experiment.yaml").exists()
        fresh = ("run", folder / "experiment.yaml", "--out", out, "--journal", running.url)
        process = subprocess.Popen(
            command(*(("resume", out) if begun else fresh)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        kill_after(process, out, moments.randint(1, 6), moments.uniform(0, 0.5))
    subprocess.run(command("resume", out), check=True, capture_output=True)
    assert outcome(out) == outcome(whole)


@pytest.mark.slow
def test_a_second_driver_on_a_copy_of_the_folder_is_refused(folder: Path, running: Server) -> None:
    """As on another machine, where neither sees the other's lock of the folder."""
    kind = running.url.partition(":")[0]
    copy = folder / f"copied-{kind}"

    class Copies(SilentDisplay):
        def told(self, trial: object, progress: object) -> None:
            super().told(trial, progress)
            if self.told_numbers[-1] == 3:
                shutil.copytree(folder / f"first-{kind}", copy)
                with pytest.raises(RunError, match=rf"process {os.getpid()} on \S+ is working on the run of"):
                    resume(copy, SilentDisplay())

    run(folder, folder / f"first-{kind}", f"journal={running.url}", display=Copies())
    assert copy.exists()
    assert resume(copy, SilentDisplay()).finished  # now it may, and sees the same journal
    assert outcome(copy)[0] == outcome(folder / f"first-{kind}")[0]


@pytest.mark.slow
def test_every_stage_of_a_run_in_stages_has_a_journal_of_its_own(
    folder: Path, servers: Callable[[str], Server]
) -> None:
    nested = ("searcher={kind: map, variant: nested, seed: 3}", "budget.trials=18", f"journal={servers('redis').url}")
    plain = run(folder, folder / "nested-file", *nested[:2])
    out = run(folder, folder / "nested-redis", *nested)
    assert outcome(out)[0] == outcome(plain)[0]
    fronts = [[{**entry, "recipe": None} for entry in read_front(path / "front.jsonl")] for path in (out, plain)]
    assert fronts[0] == fronts[1], "but for recipes, which name a model inside the run's folder"
    journals = sorted(path.relative_to(out) for path in out.rglob("journal.log"))
    assert len(journals) == 2
    addresses = {read_address(out / path) for path in journals}
    assert len(addresses) == 2
    assert None not in addresses


@pytest.mark.slow
def test_a_run_that_fails_before_its_first_trial_leaves_nothing_on_the_server(folder: Path, running: Server) -> None:
    kept: list[object] = []

    class Notes(SilentDisplay):
        def note(self, text: str) -> None:
            super().note(text)
            kept.append(read_address(folder / "failing" / "journal.log"))

    failing = "fitness.objectives=[{function: './score.py:fails', name: only}]"
    with pytest.raises(Exception, match="this function always fails"):
        run(folder, folder / "failing", failing, f"journal={running.url}", display=Notes())
    assert not (folder / "failing").exists()
    (address,) = {each for each in kept if each is not None}
    assert list(server_backend(address, folder).read_logs(0)) == []  # type: ignore[arg-type]


class Fills(SilentDisplay):
    """Fills a disk, but for some bytes, once a trial is told."""

    def __init__(self, disk: Path, number: int) -> None:
        super().__init__()
        self._disk, self._number = disk, number

    def told(self, trial: object, progress: object) -> None:
        super().told(trial, progress)
        if self.told_numbers[-1] == self._number:
            with (self._disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
                while True:
                    ballast.write(b"x" * 4096)


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_once_there_is_room(folder: Path, whole: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        with pytest.raises(RunError, match="No space left on device"):
            run(folder, disk / "run", display=Fills(disk, 3))
        (disk / "ballast").unlink()
        with pytest.raises(RunError, match="No space left on device"):
            resume(disk / "run", Fills(disk, 11))
        (disk / "ballast").unlink()
        assert resume(disk / "run", SilentDisplay()).finished
        assert outcome(disk / "run") == outcome(whole)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_what_was_evaluated_before_the_first_trial_outlives_a_full_disk(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, kept = ResponseStore.write, list[str]()

    def full(store: ResponseStore, recipe_hash: str, outcome: Outcome) -> None:
        if len(kept) == 4:
            raise RunError("No space left on device")
        write(store, recipe_hash, outcome)
        kept.append(recipe_hash)

    monkeypatch.setattr(ResponseStore, "write", full)
    with pytest.raises(RunError, match="No space left on device"):
        run(folder, folder / "full")
    monkeypatch.undo()
    assert resume(folder / "full", SilentDisplay()).finished
    assert outcome(folder / "full") == outcome(whole)
    lines = (folder / "full" / "responses" / "search.jsonl").read_text().splitlines()
    hashes = [json.loads(line)["recipe"] for line in lines]
    assert hashes[:4] == kept
    assert len(set(hashes)) == len(hashes), "nothing was evaluated again"


def test_resuming_does_not_depend_on_the_clock(folder: Path, whole: Path) -> None:
    """A journal whose trials were written while the clock jumped back and forth."""
    out = folder / "clock"
    shutil.copytree(whole, out)
    lines = [json.loads(line) for line in (out / "journal.log").read_text().splitlines()]
    first = next(n for n, line in enumerate(lines) if line["op_code"] == 4)
    moments = random.Random(0)
    for line in lines[first:]:
        for key in ("datetime_start", "datetime_complete"):
            line[key] = f"{moments.randint(1971, 2090)}-01-01T00:00:00.000000+00:00"
    (out / "journal.log").write_text("".join(json.dumps(line) + "\n" for line in lines[: first + 9]))
    for name in ("confirmation.json", "front.jsonl"):
        (out / name).unlink()
    assert resume(out, SilentDisplay()).finished
    assert outcome(out) == outcome(whole)
    assert "finished, 18 of 18 trials" in told("status", out)
