"""Paths that every node of a cluster must see: parents, tasks and functions that are named by where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import WorkerError


def check_paths(references: Mapping[str, str], fitness: Mapping[str, Any]) -> None:
    """Refuse to go on where what an experiment names by its path is missing.

    Args:
        references: of the models; those that are no absolute paths are found by other means.
        fitness: a ``FitnessConfig`` as JSON data.

    Raises:
        WorkerError: names the node and every path that it lacks.
    """
    missing = [path for path in _paths(references.values(), fitness) if not Path(path).exists()]
    if missing:
        raise WorkerError(
            f"the node {os.uname().nodename} does not have {', '.join(missing)}: parents, tasks and functions that are "
            "given as paths must lie in a folder that all nodes share, at the same path"
        )


def _paths(references: Iterable[str], fitness: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    for reference in references:
        parts += [reference] if Path(reference).exists() else reference.split("+")  # a model and its adapter
    for objective in fitness.get("objectives", ()):
        parts += [str(objective.get(field) or "").partition(":")[0] for field in ("function", "task")]
    return list(dict.fromkeys(part for part in parts if os.path.isabs(part)))
