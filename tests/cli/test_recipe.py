"""Recipes on the command line: printed, written for mergekit, and merged in stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evomerge.cli import cli
from evomerge.errors import ConfigError
from evomerge.recipes import read_recipes
from evomerge.testing.tiny_models import tiny_family

STAGES = """\
name: first
merge_method: linear
models: [{model: $a}, {model: $b}]
parameters: {weight: 0.5}
---
merge_method: dare_ties
base_model: $base
models: [{model: first}]
parameters: {weight: 1, density: 0.5}
seed: 3
"""
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command in a folder with models and the file stages.yaml."""
    text = STAGES
    for name, path in tiny_family(tmp_path / "models", parents=2).items():
        text = text.replace(f"${name}", str(path))
    (tmp_path / "stages.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        result = CliRunner().invoke(cli, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_stages_are_merged_and_the_folder_tells_all_of_them(run: Run, tmp_path: Path) -> None:
    assert run("validate", "stages.yaml").output.endswith("a valid recipe of 3 models in 2 stages\n")
    done = run("merge", "stages.yaml", "out", "--keep-intermediates", "kept")
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert done.stderr == "merging stage 'first'\nmerging the result\n"
    assert {path.name for path in tmp_path.iterdir()} == {"models", "stages.yaml", "out", "kept"}
    written = [stage.recipe for stage in read_recipes(tmp_path / "out" / "recipe.yaml")]
    assert written == [stage.recipe for stage in read_recipes("stages.yaml")]
    card = (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "recipe.yaml").read_text().rstrip() in card
    assert "models/base" in card
    assert "| `first`" not in card
    assert "`first` is linear of" in card


def test_a_recipe_is_printed_and_written_for_mergekit(run: Run, tmp_path: Path) -> None:
    printed = run("recipe", "stages.yaml").output
    (tmp_path / "printed.yaml").write_text(printed)
    assert [s.recipe for s in read_recipes("printed.yaml")] == [s.recipe for s in read_recipes("stages.yaml")]
    other = run("recipe", "stages.yaml", "--for", "mergekit").output
    assert "seed: 3" not in other
    assert "# evomerge drops entries at random with seed 3." in other
    (tmp_path / "aim.yaml").write_text((tmp_path / "stages.yaml").read_text() + "aim: {omega: 0.5}\n")
    with pytest.raises(ConfigError, match="the last stage: aim: mergekit does not relax"):
        run("recipe", "aim.yaml", "--for", "mergekit")
