"""A journal on real Redis and PostgreSQL servers: the same trials as in a file, each written once, by one driver."""

import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import optuna
import psycopg
import pytest

from evomerge.errors import ConfigError, RunError
from evomerge.experiments.journal import Journal, Trial, discard, open_storage
from evomerge.experiments.journals import on_postgresql, on_redis, server
from evomerge.experiments.journals.address import read_address
from evomerge.experiments.journals.server import ServerBackend, UnreachableError, check_server, server_backend
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, IntGene
from evomerge.searchers import ObjectiveSpec
from evomerge.testing.servers import MissingServer, Server, free_port, postgresql_server, redis_server

GENES = (FloatGene("w", -1.0, 1.0, 0.0), IntGene("n", 1, 9, 1), ChoiceGene("c", ("a", "b"), "a"))
OBJECTIVES = (ObjectiveSpec("accuracy", "maximize"), ObjectiveSpec("loss", "minimize", 2.0))
FACTS = [{"name": o.name, "direction": o.direction, "weight": o.weight, "task": "t", "metric": "m"} for o in OBJECTIVES]
SERVERS = {"redis": redis_server, "postgresql": postgresql_server}


def trial(number: int) -> Trial:
    return Trial(
        number=number,
        genome={"w": 0.1 + 0.2 * number / 3, "n": 1 + number % 9, "c": "ab"[number % 2]},
        objectives=None if number % 5 == 2 else {"accuracy": 1 / (3 + number), "loss": 1e-17 * number},
        recipe_hash=f"{number:016x}",
        error="日本語 \x00 " + "long " * 1000 if number % 5 == 2 else None,
        started=datetime(2026, 1, 1, 0, 0, number % 60),
        finished=datetime(2026, 1, 1, 0, 1, number % 60),
    )


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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that expires, and is renewed, in a tenth of the time."""
    monkeypatch.setattr(on_redis, "EXPIRY", 4.0)
    monkeypatch.setattr(on_redis, "RENEWAL", 0.3)
    monkeypatch.setattr(on_redis, "LOOK", 0.1)
    monkeypatch.setattr(on_postgresql, "HOLD_ATTEMPTS", 4)


def opened(path: Path, url: str, notes: list[str] | None = None) -> Journal:
    journal = Journal.write(path, "run", OBJECTIVES, url=url, note=(notes if notes is not None else []).append)
    if "identity" not in journal.facts():
        journal.note("objectives", FACTS)
        journal.note("identity", {})
    return journal


def backend_of(journal: Journal) -> ServerBackend:
    backend = journal._backend
    assert isinstance(backend, ServerBackend)
    return backend


def test_trials_come_out_exactly_as_from_a_file(tmp_path: Path, running: Server) -> None:
    trials = [trial(n) for n in range(12)]
    found = {}
    for name, url in {"file": None, "server": running.url}.items():
        (tmp_path / name).mkdir()
        path = tmp_path / name / "journal.log"
        with Journal.write(path, "run", OBJECTIVES, url=url) as journal:
            journal.note("objectives", FACTS)
            journal.note("identity", {"a": ["b" * 5000]})
            for each in trials:
                journal.append(each, GENES)
            assert journal.trials() == trials
        read = Journal.read(path)
        found[name] = read.trials(), read.facts(), read.objectives
    assert found["server"] == found["file"]
    assert found["file"][0] == trials


def test_a_resumed_journal_goes_on_and_runs_do_not_mix(tmp_path: Path, running: Server) -> None:
    paths = [tmp_path / name / "journal.log" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        with opened(path, running.url) as journal:
            journal.append(trial(0), GENES)
    with opened(paths[0], "redis://nowhere.invalid") as journal:  # it stays where it is
        journal.append(trial(1), GENES)
    assert [len(Journal.read(path).trials()) for path in paths] == [2, 1]


def test_many_entries_are_read_in_batches(tmp_path: Path, running: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BATCH", 3)
    for count in (5, 6, 7):
        path = tmp_path / str(count) / "journal.log"
        path.parent.mkdir()
        with opened(path, running.url) as journal:  # three entries before the trials
            for number in range(count):
                journal.append(trial(number), GENES)
        assert Journal.read(path).trials() == [trial(n) for n in range(count)]


def test_optuna_reads_it_as_a_study(tmp_path: Path, running: Server) -> None:
    path = tmp_path / "journal.log"
    with opened(path, running.url) as journal:
        for number in range(4):
            journal.append(trial(number), GENES)
    storage = open_storage(path)
    study = optuna.load_study(study_name="run", storage=storage)
    assert [t.number for t in study.trials] == [0, 1, 2, 3]
    assert study.trials[0].values == [1 / 3, 0.0]
    with pytest.raises(RunError, match="opened for reading"):
        study.set_user_attr("note", "no")


def test_nothing_that_lies_on_the_server_is_unpickled(tmp_path: Path, servers: Callable[[str], Server]) -> None:
    """Optuna's own backend for Redis loads a pickle that anybody may have put there."""
    path, proof = tmp_path / "journal.log", tmp_path / "executed"
    with opened(path, servers("redis").url) as journal:
        backend = backend_of(journal)
        assert isinstance(backend, on_redis.RedisBackend)

        class Bomb:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.mkdir, (str(proof),)

        backend._connected().set(f"evomerge:{backend.address.run}:snapshot", pickle.dumps(Bomb()))
    assert Journal.read(path).facts()
    assert open_storage(path).get_all_studies()
    assert not proof.exists()


def test_an_answer_that_is_lost_does_not_write_twice(
    tmp_path: Path, running: Server, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "FIRST_WAIT", 0.01)
    notes: list[str] = []
    with opened(tmp_path / "journal.log", running.url, notes) as journal:
        backend = backend_of(journal)
        append, lost = backend.append, backend.lost[0]

        def broken(number: int, entry: str) -> None:
            """The connection breaks before the server has it, then after."""
            tries.append(number)
            if len(tries) % 3 == 1:
                raise lost("broken before")
            append(number, entry)
            if len(tries) % 3 == 2:
                raise lost("broken after")

        tries: list[int] = []
        monkeypatch.setattr(backend, "append", broken)
        for number in range(5):
            journal.append(trial(number), GENES)
        assert len(tries) == 15
    assert Journal.read(tmp_path / "journal.log").trials() == [trial(n) for n in range(5)]
    assert sum("is away (broken before); trying again for 60 s" in note for note in notes) == 5
    assert notes.count("the journal's server is back") == 5


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path, running: Server, quick: None) -> None:
    path = tmp_path / "journal.log"
    with opened(path, running.url) as journal:
        with pytest.raises(RunError, match=rf"process {os.getpid()} on \S+ is working on the run of .*wait for it"):
            opened(path, running.url)
        journal.append(trial(0), GENES)
        assert Journal.read(path).trials() == [trial(0)]  # readers are free
    with opened(path, running.url) as journal:
        assert len(journal.trials()) == 1


def hold_and_wait(path: Path, url: str, held: "multiprocessing.synchronize.Event") -> None:
    opened(path, url).append(trial(0), GENES)
    held.set()
    time.sleep(600)


def test_a_killed_drivers_lock_ends(tmp_path: Path, running: Server, quick: None) -> None:
    path, context = tmp_path / "journal.log", multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold_and_wait, args=(path, running.url, held))
    process.start()
    assert held.wait(60)
    with pytest.raises(RunError, match=rf"process {process.pid} on"):
        opened(path, running.url)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    notes: list[str] = []
    with opened(path, running.url, notes) as journal:
        journal.append(trial(1), GENES)
    assert len(Journal.read(path).trials()) == 2
    assert any("waiting to see whether that goes on" in note for note in notes) == running.url.startswith("redis")


def append_on_and_on(path: Path, url: str, count: int) -> None:
    with opened(path, url) as journal:
        for number in range(len(journal.trials()), count):
            journal.append(trial(number), GENES)


def test_drivers_killed_at_random_instants_leave_each_trial_once(
    tmp_path: Path, running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_redis, "EXPIRY", 0.5)
    monkeypatch.setattr(on_redis, "LOOK", 0.1)
    path, context = tmp_path / "journal.log", multiprocessing.get_context("fork")
    moments, kills = random.Random(running.url.partition(":")[0]), 0
    opened(path, running.url).close()
    for _ in range(12):
        before = len(Journal.read(path).trials())
        process = context.Process(target=append_on_and_on, args=(path, running.url, 10_000))
        process.start()
        while len(Journal.read(path).trials()) == before and process.is_alive():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills == 12
    found = Journal.read(path).trials()
    assert found == [trial(n) for n in range(len(found))]
    assert len(found) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["redis", "postgresql"])
def test_a_server_killed_at_random_instants_holds_each_trial_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among others between the commit and the answer."""
    monkeypatch.setattr(server, "FIRST_WAIT", 0.05)
    path, moments, stop = tmp_path / "journal.log", random.Random(kind), threading.Event()
    try:
        with SERVERS[kind]() as own:  # type: ignore[operator]

            def kill_and_start() -> None:
                for _ in range(6):
                    time.sleep(moments.uniform(0.2, 0.6))
                    own.stop()
                    own.start()
                stop.set()

            notes, count = list[str](), 0
            killer = threading.Thread(target=kill_and_start)
            with opened(path, own.url, notes) as journal:
                killer.start()
                while not stop.is_set():
                    journal.append(trial(count), GENES)
                    count += 1
                killer.join()
            assert Journal.read(path).trials() == [trial(n) for n in range(count)]
            assert any("is away" in note for note in notes)
    except MissingServer as missing:
        pytest.skip(str(missing))


def test_a_driver_that_lost_its_lock_to_another_writes_nothing(
    tmp_path: Path, running: Server, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a long pause of its machine: the lock is gone, another driver went on."""
    path = tmp_path / "journal.log"
    first = opened(path, running.url)
    backend = backend_of(first)
    if isinstance(backend, on_redis.RedisBackend):
        backend._closing.set()  # no renewal any more
        assert backend._renewing is not None
        backend._renewing.join()
    else:
        assert isinstance(backend, on_postgresql.PostgreSQLBackend)
        backend._connected().close()
    with opened(path, running.url) as second:
        second.append(trial(0), GENES)
        with pytest.raises(RunError, match="is working on the run of"):
            first.append(replace(trial(0), seconds=1.0), GENES)
    with pytest.raises(RunError, match="another driver has written to it"):
        first.append(replace(trial(0), seconds=1.0), GENES)
    first.close()
    assert Journal.read(path).trials() == [trial(0)]


def test_a_server_that_lost_entries_is_noticed(tmp_path: Path, running: Server) -> None:
    path = tmp_path / "journal.log"
    with opened(path, running.url) as journal:
        for number in range(3):
            journal.append(trial(number), GENES)
        backend = backend_of(journal)
        if isinstance(backend, on_redis.RedisBackend):
            backend._connected().set(backend._last, 4)
        else:
            assert isinstance(backend, on_postgresql.PostgreSQLBackend)
            backend._connected().execute("DELETE FROM evomerge_journal WHERE number > 4")
        with pytest.raises(RunError, match=r"has lost entries \(5 of 6 are left\)"):
            journal.append(trial(3), GENES)
    with opened(path, running.url) as journal:  # resumed: it goes on from there
        assert journal.trials() == [trial(0), trial(1)]
        journal.append(trial(2), GENES)
    assert Journal.read(path).trials() == [trial(n) for n in range(3)]


def test_a_server_that_is_away_for_a_while_is_waited_for(tmp_path: Path, quick: None) -> None:
    for kind, make in SERVERS.items():
        try:
            with make() as own:  # type: ignore[operator]
                path, notes = tmp_path / f"{kind}.log", list[str]()
                with opened(path, own.url, notes) as journal:
                    journal.append(trial(0), GENES)
                    own.stop()
                    back = threading.Timer(1.5, own.start)
                    back.start()
                    journal.append(trial(1), GENES)
                    back.join()
                    journal.append(trial(2), GENES)
                    assert [("away" in note, "back" in note) for note in notes] == [(True, False), (False, True)]
                assert Journal.read(path).trials() == [trial(n) for n in range(3)]
        except MissingServer as missing:
            pytest.skip(str(missing))


def test_a_server_that_stays_away_stops_the_run_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 1.0)
    for kind, make in SERVERS.items():
        try:
            with make() as own:  # type: ignore[operator]
                path = tmp_path / f"{kind}.log"
                with opened(path, own.url) as journal:
                    own.stop()
                    with pytest.raises(
                        UnreachableError, match=r"no evaluation is lost: .* go on with `evomerge resume"
                    ):
                        journal.append(trial(0), GENES)
                with pytest.raises(UnreachableError, match="cannot reach the journal at"):
                    Journal.read(path)
        except MissingServer as missing:
            pytest.skip(str(missing))


@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
def test_a_server_that_is_not_there_is_refused(scheme: str) -> None:
    with pytest.raises(UnreachableError, match="start this server"):
        check_server(f"{scheme}://127.0.0.1:{free_port()}/0")


@pytest.mark.parametrize(("scheme", "module"), [("redis", "redis"), ("postgresql", "psycopg")])
def test_a_missing_driver_is_named_with_its_extra(scheme: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"evomerge.experiments.journals.on_{scheme}")
    with pytest.raises(ConfigError, match=rf"pip install 'evomerge\[{scheme}\]'"):
        check_server(f"{scheme}://127.0.0.1/0")


def test_drivers_that_start_at_once_make_one_table(tmp_path: Path, servers: Callable[[str], Server]) -> None:
    url = servers("postgresql").url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS evomerge_journal")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: opened(tmp_path / f"{n}.log", url).close(), range(8)))
    assert [Journal.read(tmp_path / f"{n}.log").trials() for n in range(8)] == [[]] * 8


def test_a_user_without_rights_is_told_what_is_missing(tmp_path: Path, servers: Callable[[str], Server]) -> None:
    url = servers("postgresql").url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS evomerge_journal")
        connection.execute("REVOKE CREATE ON SCHEMA public FROM public")
        connection.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(RunError, match=r"refuses: permission denied for schema public .*docs/journal\.md"):
        opened(tmp_path / "journal.log", url.replace("evomerge@", "guest@"))


def test_discarding_leaves_nothing_on_the_server(tmp_path: Path, running: Server) -> None:
    path = tmp_path / "journal.log"
    with opened(path, running.url) as journal:
        journal.append(trial(0), GENES)
    address = read_address(path)
    assert address is not None
    discard(path)
    assert not path.exists()
    left = server_backend(address, tmp_path)
    assert list(left.read_logs(0)) == []


def test_a_redis_that_may_lose_data_is_warned_of(tmp_path: Path) -> None:
    try:
        with redis_server("--appendonly", "no", "--maxmemory-policy", "allkeys-lru") as own:
            notes: list[str] = []
            opened(tmp_path / "journal.log", own.url, notes).close()
    except MissingServer as missing:
        pytest.skip(str(missing))
    assert [note.split("(")[0] for note in notes] == [
        "warning: this Redis keeps its data in memory ",
        "warning: this Redis drops any data when memory is short ",
    ]


def test_a_durable_redis_is_not_warned_of(tmp_path: Path, servers: Callable[[str], Server]) -> None:
    notes: list[str] = []
    opened(tmp_path / "journal.log", servers("redis").url, notes).close()
    assert notes == []


def test_passwords_come_from_the_environment_and_reach_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, wrong = "correct-horse", "battery-staple"
    for kind, variable, make in (
        ("redis", "REDISCLI_AUTH", lambda: redis_server("--requirepass", secret)),
        ("postgresql", "PGPASSWORD", lambda: postgresql_server(secret)),
    ):
        try:
            with make() as own:
                monkeypatch.setenv(variable, wrong)
                time.sleep(0.5)
                with pytest.raises(RunError, match="password") as refused:
                    check_server(own.url)
                shown = _whole(refused.value)
                assert wrong not in shown
                assert secret not in shown
                monkeypatch.setenv(variable, secret)
                path = tmp_path / kind / "journal.log"
                path.parent.mkdir()
                with opened(path, own.url) as journal:
                    journal.append(trial(0), GENES)
                assert len(Journal.read(path).trials()) == 1
                assert secret not in path.read_text()
                monkeypatch.delenv(variable)
                with pytest.raises(RunError):
                    check_server(own.url)
        except MissingServer as missing:
            pytest.skip(str(missing))


def _whole(error: BaseException) -> str:
    import traceback

    return "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format())
