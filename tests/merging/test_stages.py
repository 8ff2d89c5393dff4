"""Merges of merges: what they come to, what is refused before any work, and going on after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.errors import ConfigError, ExportError, MergeError
from evomerge.merging import Parents, merge_to_folder
from evomerge.merging.stages import merge_stages
from evomerge.recipes import NamedRecipe, Recipe, parse_recipes, read_recipes
from evomerge.testing.tiny_models import tiny_family

Texts = Callable[[str], tuple[NamedRecipe, ...]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_family(tmp_path_factory.mktemp("family"), layers=2)


@pytest.fixture
def stages(family: dict[str, Path]) -> Texts:
    """Return a function that reads stages in which BASE, A, B and C are models."""

    def read(text: str) -> tuple[NamedRecipe, ...]:
        for name, path in family.items():
            text = text.replace(f"${name}", str(path))
        return parse_recipes(text, "file.yaml")

    return read


TWO = """
name: first
merge_method: linear
models: [{model: $a}, {model: $b}]
parameters: {weight: 0.5}
---
merge_method: slerp
base_model: first
models: [{model: $c}]
parameters: {t: 0.25}
"""


class Counting:
    """`merge_to_folder`, and the names of what it was asked for."""

    def __init__(self, fail_at: str = "") -> None:
        self.done: list[str] = []
        self.fail_at = fail_at

    def __call__(self, recipe: Recipe, out: Path, parents: Parents) -> Path:
        if out.name == self.fail_at:
            raise MergeError("killed")
        self.done.append(out.name)
        return merge_to_folder(recipe, out, parents=parents)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_stages_are_the_merges_one_after_the_other(stages: Texts, family: dict[str, Path], tmp_path: Path) -> None:
    out = merge_stages(stages(TWO), tmp_path / "out")
    a, b, c = (str(family[name]) for name in "abc")
    linear = {"merge_method": "linear", "models": [{"model": a}, {"model": b}], "parameters": {"weight": 0.5}}
    first = merge_to_folder(Recipe.model_validate(linear), tmp_path / "first")
    slerp = {"merge_method": "slerp", "base_model": str(first), "models": [{"model": c}], "parameters": {"t": 0.25}}
    expected = weights(merge_to_folder(Recipe.model_validate(slerp), tmp_path / "second"))
    found = weights(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [each.recipe for each in read_recipes(out / "recipe.yaml")] == [each.recipe for each in stages(TWO)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "out", "second"]  # nothing hidden is left


def test_stages_are_done_in_the_order_of_need_and_only_those_needed(stages: Texts, tmp_path: Path) -> None:
    documents = TWO.split("---")
    unused = documents[0].replace("first", "unused")
    merge = Counting()
    merge_stages(stages("---".join([documents[1], unused, documents[0]])), tmp_path / "out", merge=merge)
    assert merge.done == [".first.merging", "result"]


def test_kept_stages_are_used_again_until_something_changes(stages: Texts, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    merge_stages(stages(TWO), tmp_path / "one", intermediates=kept)
    assert (kept / "first" / "model.safetensors").is_file()
    again = Counting()
    merge_stages(stages(TWO), tmp_path / "two", intermediates=kept, merge=again)
    assert again.done == ["result"]
    changed = Counting()
    merge_stages(
        stages(TWO.replace("weight: 0.5", "weight: 0.7")), tmp_path / "three", intermediates=kept, merge=changed
    )
    assert changed.done == [".first.merging", "result"]


def test_after_a_failure_the_finished_stages_are_not_done_again(stages: Texts, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="killed"):
        merge_stages(stages(TWO), tmp_path / "out", merge=Counting(fail_at="result"))
    assert not (tmp_path / "out").exists()
    again = Counting()
    merge_stages(stages(TWO), tmp_path / "out", merge=again)
    assert again.done == ["result"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_folder_that_is_no_stage_is_not_replaced(stages: Texts, tmp_path: Path) -> None:
    (tmp_path / "kept" / "first").mkdir(parents=True)
    (tmp_path / "kept" / "first" / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="no stage of an earlier merge"):
        merge_stages(stages(TWO), tmp_path / "out", intermediates=tmp_path / "kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="not empty"):
        merge_stages(stages(TWO), tmp_path / "full", merge=Counting(fail_at=".first.merging"))


def test_stages_that_all_have_names_are_all_written(stages: Texts, tmp_path: Path) -> None:
    out = merge_stages(
        stages(TWO.replace("merge_method: slerp", "name: second\nmerge_method: slerp")), tmp_path / "out"
    )
    assert sorted(path.name for path in out.iterdir()) == ["first", "second"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{t: 0.25}", "{u: 0.25}", "file.yaml:7: parameters.u: slerp has no parameter 'u'"),
        ("{model: $c}", "{model: ./nowhere}", "file.yaml:9: models[0].model: './nowhere': no such folder"),
        ("{model: $c}", "{model: ./nowhere}", "stages of this file: first"),
        ("models: [{model: $c}]", "models: [{model: $c}, {model: $a}]", "file.yaml:7: models: slerp merges exactly 2"),
    ],
)
def test_a_mistake_in_a_late_stage_is_told_before_any_work(
    stages: Texts, tmp_path: Path, old: str, new: str, message: str
) -> None:
    merge = Counting()
    with pytest.raises(ConfigError) as raised:
        merge_stages(stages(TWO.replace(old, new)), tmp_path / "out", merge=merge)
    assert message in str(raised.value)
    assert merge.done == []
    assert list(tmp_path.iterdir()) == []


def test_layers_of_a_stage_are_known_before_it_is_merged(stages: Texts, tmp_path: Path) -> None:
    text = """
name: tall
merge_method: passthrough
slices:
- {sources: [{model: $a, layer_range: [0, 2]}]}
- {sources: [{model: $b, layer_range: [1, 2]}]}
---
merge_method: passthrough
slices: [{sources: [{model: tall, layer_range: [0, LAST]}]}]
"""
    with pytest.raises(ConfigError, match=r"reaches beyond 'tall', which has 3 layers"):
        merge_stages(stages(text.replace("LAST", "4")), tmp_path / "out")
    out = merge_stages(stages(text.replace("LAST", "3")), tmp_path / "out")
    assert "model.layers.2.mlp.up_proj.weight" in weights(out)


def test_a_stage_goes_once_nothing_needs_it_any_more(stages: Texts, tmp_path: Path) -> None:
    texts = ["name: s0\nmerge_method: linear\nmodels: [{model: $a}, {model: $b}]\nparameters: {weight: 0.5}\n"]
    for number in range(1, 6):
        texts.append(texts[0].replace("s0", f"s{number}").replace("$a", f"s{number - 1}"))
    texts.append(texts[0].removeprefix("name: s0\n").replace("$a", "s5"))
    there: list[list[str]] = []

    def merge(recipe: Recipe, out: Path, parents: Parents) -> Path:
        there.append(sorted(path.name for path in (tmp_path / ".out.stages").glob("s*")))
        return merge_to_folder(recipe, out, parents=parents)

    merge_stages(stages("---\n".join(texts)), tmp_path / "out", merge=merge)
    assert there == [[], *([f"s{number}"] for number in range(6))]


def test_after_a_failure_what_finished_stages_were_made_of_is_not_made_again(stages: Texts, tmp_path: Path) -> None:
    text = """
name: one
merge_method: linear
models: [{model: $a}, {model: $b}]
parameters: {weight: 0.5}
---
name: two
merge_method: linear
models: [{model: one}, {model: $c}]
parameters: {weight: 0.5}
---
name: three
merge_method: linear
models: [{model: two}, {model: $c}]
parameters: {weight: 0.5}
---
merge_method: linear
models: [{model: three}]
parameters: {weight: 1}
"""
    failing, again = Counting(fail_at=".three.merging"), Counting()
    with pytest.raises(MergeError, match="killed"):
        merge_stages(stages(text), tmp_path / "out", merge=failing)
    assert failing.done == [".one.merging", ".two.merging"]
    merge_stages(stages(text), tmp_path / "out", merge=again)
    assert again.done == [".three.merging", "result"]
