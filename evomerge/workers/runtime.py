"""What the workers of an existing cluster are given: this version of evomerge with its content, and some settings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

import evomerge
from evomerge import library

# What the workers must see as the driver does. Tokens are left out: Ray shows a job's variables to all who can ask it.
FORWARDED = (
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_ENDPOINT",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
)


def runtime_env(folder: Path) -> dict[str, Any]:
    """Return Ray's runtime environment for the workers.

    Inside a ``ray job submit`` whose own environment sets a field or a variable, that one is left out: the job's holds.

    Args:
        folder: an empty one, to put a copy of the package into.
    """
    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")).get("runtime_env") or {}
    variables = {name: value for name, value in _variables(os.environ).items() if name not in job.get("env_vars", {})}
    return {**_package(folder, job), "env_vars": variables}


def copy_package(folder: Path) -> Path:
    """Copy the evomerge package into ``folder``, content YAML included, and return the copy."""
    installed = Path(evomerge.__file__).parent
    copy = folder / installed.name
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(installed, copy, ignore=unwanted)
    if not (copy / library.SHIPPED).is_dir():  # a checkout, where the content lies beside the package
        for kind in library.KINDS:
            shutil.copytree(installed.parent / kind, copy / library.SHIPPED / kind, ignore=unwanted)
    return copy


def _package(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the field that brings the package to the nodes: before all that is installed there, if the job permits."""
    if "py_modules" in job:
        return {}
    copy = copy_package(folder)
    if "working_dir" in job:
        return {"py_modules": [str(copy)]}
    return {
        "working_dir": str(folder)
    }  # alone keeps Ray from putting the driver's folder first, which may differ there


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to set on the nodes: names in the user's library must mean there what they mean here."""
    library_folders = [str(Path.cwd()), environment.get("EVOMERGE_LIBRARY", "")]
    found = {name: environment[name] for name in FORWARDED if name in environment}
    return {"EVOMERGE_LIBRARY": os.pathsep.join(filter(None, library_folders)), **found}
