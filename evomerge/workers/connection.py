"""The connection to Ray: a private cluster on this machine, or one that is there already."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from evomerge.errors import WorkerError

TOKEN_HINT = (
    "a cluster with token authentication (Ray's default since 2.60) needs RAY_AUTH_MODE=token and its token here"
)


def connect(ray_address: str | None) -> None:
    """Start Ray on this machine, or connect to the cluster at ``ray_address``.

    Raises:
        WorkerError: no cluster answers there.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)  # what fails comes back as an exception
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    if ray_address is None:
        # Weights never travel through the object store, so the smallest store will do.
        options |= {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    try:
        ray.init(address=ray_address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        place = f"connect to the Ray cluster at {ray_address}" if ray_address else "start Ray on this machine"
        hint = f"; {TOKEN_HINT}" if ray_address else ""
        raise WorkerError(f"cannot {place}: {error}{hint}") from error
