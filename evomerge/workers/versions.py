"""Versions of the libraries that results depend on, here and where a worker runs."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping

from evomerge import __version__

LIBRARIES = ("torch", "transformers", "lm_eval", "numpy")


def versions() -> dict[str, str]:
    """Return the versions in this process; a library that is not installed is ``none``."""
    found = {"python": platform.python_version(), "evomerge": __version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def differences(driver: Mapping[str, str], worker: Mapping[str, str]) -> list[str]:
    """Return in words each library whose version a worker has another of than the driver; none if all agree."""
    return [
        f"{name} is {worker.get(name, 'none')} there and {version} here"
        for name, version in driver.items()
        if worker.get(name) != version
    ]
