"""Recipes mean what mergekit's own planner makes of them: stored values, and live ones if it is there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from evomerge.recipes import parse_recipe, plan, read_recipe, resolve_parameter, write_recipe

HERE = Path(__file__).parent
STORED = json.loads((HERE / "recipe_parameters.json").read_text())
RECIPES = sorted((HERE / "recipes").glob("*.yaml"))
MODELS = ("m0", "m1", "m2", "m3", "m4", "base")


def equal(ours: Any, theirs: Any) -> bool:
    """Whether two parameters are equal up to the one rounding error that mergekit makes in gradients."""
    if isinstance(theirs, bool) or theirs is None:
        return ours is theirs or (isinstance(ours, int) and bool(ours) is theirs)
    return ours == pytest.approx(theirs, rel=1e-14, abs=1e-16)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_tensors_inputs_and_depths_are_mergekits(path: Path) -> None:
    planned = plan(read_recipe(path), dict.fromkeys(MODELS, STORED["tensor_names"]))
    ours = {
        tensor.name: (tensor.depth, tensor.base, [[each.model, each.tensor] for each in tensor.inputs])
        for tensor in planned
    }
    expected = STORED["recipes"][path.stem]
    theirs = {tensor["name"]: (tensor["depth"], tensor["base"], tensor["inputs"]) for tensor in expected}
    assert ours == theirs


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_parameter_of_every_tensor_is_mergekits(path: Path) -> None:
    recipe = read_recipe(path)
    theirs = {tensor["name"]: tensor for tensor in STORED["recipes"][path.stem]}
    defaults = STORED["defaults"][path.stem]
    compared = 0
    for tensor in plan(recipe, dict.fromkeys(MODELS, STORED["tensor_names"])):
        where = {"depth": tensor.depth, "slice_index": tensor.slice_index}
        for name, value in theirs[tensor.name]["parameters"].items():
            ours = resolve_parameter(recipe, name, tensor=tensor.name, model=None, default=defaults[name], **where)
            assert equal(ours, value), (tensor.name, name, ours, value)
            compared += 1
        for each in tensor.inputs:
            for name, value in theirs[tensor.name]["of_inputs"][each.model].items():
                ours = resolve_parameter(
                    recipe, name, tensor=each.tensor, model=each.model, default=defaults[name], **where
                )
                assert equal(ours, value), (tensor.name, each.model, name, ours, value)
                compared += 1
    assert compared >= len(theirs)


@pytest.mark.slow
def test_stored_values_are_what_mergekit_says_now(tmp_path: Path) -> None:
    python = os.environ.get("EVOMERGE_MERGEKIT_PYTHON")
    if not python:
        pytest.skip("set EVOMERGE_MERGEKIT_PYTHON to the Python of an environment with mergekit")
    # What we write must mean the same to mergekit as what we read.
    for path in RECIPES:
        (tmp_path / path.name).write_text(write_recipe(read_recipe(path)))
    command = [python, str(HERE / "mergekit_recipes.py"), *(str(tmp_path / path.name) for path in RECIPES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    live = json.loads(done.stdout)
    assert live["recipes"] == STORED["recipes"]
    assert live["tensor_names"] == STORED["tensor_names"]


def test_mergekits_own_examples_parse_and_round_trip() -> None:
    source = os.environ.get("EVOMERGE_MERGEKIT_SOURCE")
    if not source:
        pytest.skip("set EVOMERGE_MERGEKIT_SOURCE to a git folder or working tree of mergekit")
    texts = _examples(Path(source))
    assert texts
    for name, text in texts.items():
        recipe = parse_recipe(text, name)
        assert parse_recipe(write_recipe(recipe)) == recipe


def _examples(source: Path) -> dict[str, str]:
    if (source / "examples").is_dir():
        return {path.name: path.read_text() for path in (source / "examples").glob("*.yml")}
    git = ["git", "-C", str(source)]
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "HEAD", "--name-only", "examples"], capture_output=True, text=True, check=True
    )
    names = [name for name in listed.stdout.split() if name.endswith(".yml")]
    return {
        name: subprocess.run([*git, "show", f"HEAD:{name}"], capture_output=True, text=True, check=True).stdout
        for name in names
    }
