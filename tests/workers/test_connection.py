"""The connection to Ray: a cluster of one's own is closed to everybody else; one that is there is found and used."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from evomerge.errors import WorkerError
from evomerge.workers import connection
from evomerge.workers.connection import connect

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.fixture
def disconnected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture
def cluster(disconnected: None) -> Iterator[Cluster]:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20, "num_gpus": 0}
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@ray.remote(num_cpus=0)
class Somebody:
    def where(self) -> tuple[str, str, str]:
        """Return the package's folder, a content file and a variable, as a worker sees them."""
        import evomerge
        from evomerge import library

        content = library.find("search_spaces", "layerwise-ties").path
        return evomerge.__file__, str(content), os.environ.get("HF_HUB_OFFLINE", "")


def listening() -> dict[tuple[str, int], str]:
    """Return the addresses that this process and the ones it started listen on, with the process's name."""
    me, found = psutil.Process(), {}
    for process in (me, *me.children(recursive=True)):
        for socket in process.net_connections("inet"):
            if socket.status == psutil.CONN_LISTEN:
                found[socket.laddr.ip, socket.laddr.port] = process.name()
    return found


def test_what_is_started_here_listens_on_loopback_only_and_keeps_its_files_to_itself(disconnected: None) -> None:
    before = listening()
    connect(None)
    ray.get(Somebody.remote().where.remote())  # a worker has a port of its own
    sockets = {place: name for place, name in listening().items() if place not in before}
    assert len(sockets) >= 5  # driver, GCS, raylet and its agent, worker
    assert {ip for ip, _ in sockets} <= LOOPBACK, sockets
    folder = Path(ray._private.worker._global_node.get_temp_dir_path()).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == os.getuid()


def test_the_setting_that_binds_to_loopback_is_taken_back(disconnected: None) -> None:
    name = connection.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    with connection._on_loopback():
        assert os.environ[name] == "0"
        assert not connection.ray_constants.ENABLE_RAY_CLUSTER
    assert name not in os.environ
    assert connection.ray_constants.ENABLE_RAY_CLUSTER


def test_nothing_is_left_of_it_when_the_process_ends(tmp_path: Path) -> None:
    script = "from evomerge.workers import connect; connect('local')"
    environment = {**os.environ, "RAY_TMPDIR": "/tmp", "RAY_ADDRESS": ""}
    kept = set(Path("/tmp").glob("evomerge-*"))
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {p for p in Path("/tmp").glob("evomerge-*") if p not in kept and p.stat().st_mtime} == set()


def test_a_long_temporary_folder_is_not_used_as_sockets_in_it_could_not_be_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    folder = Path(connection._private_folder())
    assert folder.parent.parent == Path("/tmp")
    folder.parent.rmdir()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/")
    folder = Path(connection._private_folder())
    folder.parent.rmdir()
    session = folder / "session_2026-01-01_00-00-00_000000_0000000" / "sockets" / "plasma_store.suffix"
    assert len(str(session)) < 107


@pytest.mark.slow
def test_the_cluster_of_the_environment_is_used_without_a_flag_and_its_workers_run_this_version(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)  # as `ray job submit` does
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines: list[str] = []
    connect(None, lines.append)
    assert lines == [f"connected to the Ray cluster at {cluster.address} ($RAY_ADDRESS): 1 node, 1 CPU cores, 0 GPUs"]
    assert ray.get_runtime_context().gcs_address == cluster.address
    package, content, offline = ray.get(Somebody.remote().where.remote())
    assert "runtime_resources" in package
    assert Path(content).is_relative_to(Path(package).parent)
    assert offline == "1"


@pytest.mark.slow
def test_a_private_cluster_can_be_had_whatever_the_environment_says(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    connect("local")
    assert ray.get_runtime_context().gcs_address != cluster.address


def test_a_cluster_that_does_not_answer_says_where_its_address_came_from(
    disconnected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

    def refuse(**options: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(WorkerError, match=r"at 127\.0\.0\.1:1 \(\$RAY_ADDRESS\): nobody there.*--ray-address local"):
        connect(None)


def test_client_addresses_are_refused_with_the_way_to_go(disconnected: None) -> None:
    with pytest.raises(WorkerError, match=r"ray://head:10001: Ray's client addresses.*ray job submit"):
        connect("ray://head:10001")
