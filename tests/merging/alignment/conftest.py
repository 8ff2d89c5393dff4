"""Pairs of models that differ in the order of their neurons only."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.testing.permuted_models import write_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Return the function name → folder of `write_pair`, written once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            write_pair(made[name], name)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
