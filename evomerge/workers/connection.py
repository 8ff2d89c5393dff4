"""The connection to Ray: a private cluster on this machine, or one that is there already."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from evomerge.errors import WorkerError
from evomerge.workers.runtime import runtime_env

LOCAL = "local"  # Ray's word for a cluster of one's own
LONGEST_FOLDER = 40  # characters; Ray puts sockets 65 characters below it, and their paths may have 107
TOKEN_HINT = (
    "a cluster with token authentication (Ray's default since 2.60) needs RAY_AUTH_MODE=token and its token here"
)
NO_CLIENT = (
    "Ray's client addresses (ray://) are not supported: a dropped connection would end the workers with it. Submit the "
    "run as a job (`ray job submit -- evomerge run ...`), or start it on a machine of the cluster with "
    "`--ray-address auto` (docs/cluster.md)"
)


def connect(ray_address: str | None, report: Callable[[str], None] = lambda text: None) -> None:
    """Start Ray on this machine, or connect to the cluster that ``ray_address`` or else ``$RAY_ADDRESS`` names.

    Ray sets ``$RAY_ADDRESS`` for what ``ray job submit`` runs, so that a job uses the cluster that it is on. A cluster
    started here is this user's alone: its ports are on loopback, its files in a folder that only the user can enter,
    removed when the process ends.

    Args:
        ray_address: ``HOST:PORT``, ``auto`` for a cluster that this machine is part of, or ``local`` for a private one
            whatever the environment says.
        report: told in one line what was connected to.

    Raises:
        WorkerError: no cluster answers there, or the address is of a kind that is not supported.
    """
    if ray.is_initialized():
        return
    address = ray_address or os.environ.get(ray_constants.RAY_ADDRESS_ENVIRONMENT_VARIABLE) or LOCAL
    if "://" in address:
        raise WorkerError(f"cannot use the Ray address {address}: {NO_CLIENT}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)  # what fails comes back as an exception
    if address == LOCAL:
        _start_here()
        return
    named = "" if ray_address else f" (${ray_constants.RAY_ADDRESS_ENVIRONMENT_VARIABLE})"
    try:
        with tempfile.TemporaryDirectory(prefix="evomerge-package-") as folder:  # Ray uploads it at once
            _initialise(address=address, runtime_env=runtime_env(Path(folder)))
    except _FAILURES as error:
        unset = "; to run on this machine alone, add --ray-address local" if named else ""
        raise WorkerError(
            f"cannot connect to the Ray cluster at {address}{named}: {error}; {TOKEN_HINT}{unset}"
        ) from error
    report(f"connected to the Ray cluster at {address}{named}: {_offer()}")


_FAILURES = (ConnectionError, RuntimeError, ValueError, OSError)


def _initialise(**options: Any) -> None:
    ray.init(logging_level=logging.ERROR, log_to_driver=False, configure_logging=False, **options)


def _start_here() -> None:
    """Start a cluster of this machine alone, that nobody else can reach.

    Raises:
        WorkerError: Ray does not start.
    """
    folder = _private_folder()
    try:
        with _on_loopback():
            # Weights never travel through the object store, so the smallest store will do.
            _initialise(address=LOCAL, include_dashboard=False, object_store_memory=100 * 2**20, _temp_dir=folder)
    except _FAILURES as error:
        raise WorkerError(f"cannot start Ray on this machine: {error}; Ray's logs are in {folder}") from error
    atexit.register(partial(_remove, folder, os.getpid()))


def _private_folder() -> str:
    """Return a new folder that only this user can enter; Ray opens those that it makes inside to everybody."""
    parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="evomerge-", dir=parent if len(parent) + 18 <= LONGEST_FOLDER else "/tmp")
    return os.path.join(folder, "ray")


def _remove(folder: str, owner: int) -> None:
    """Stop Ray, then remove what it wrote; not in a process that was forked from the one that started it."""
    if os.getpid() == owner:
        ray.shutdown()
        shutil.rmtree(os.path.dirname(folder), ignore_errors=True)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a Ray that is started meanwhile listen on loopback only.

    Ray has no option for that: ``_node_ip_address="127.0.0.1"`` it turns into the machine's outer address. But where
    it is told not to make clusters of several machines, its node is 127.0.0.1, and all servers listen there and nowhere
    else. Its processes read that from the environment, this process from a constant made of it.
    """
    name, former = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    set_before = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = former
        if set_before is None:
            del os.environ[name]
        else:
            os.environ[name] = set_before


def _offer() -> str:
    """Return what the cluster has, in words."""
    nodes, resources = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources()
    machines = f"{nodes} node{'' if nodes == 1 else 's'}"
    return f"{machines}, {resources.get('CPU', 0):g} CPU cores, {resources.get('GPU', 0):g} GPUs"
