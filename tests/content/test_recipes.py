"""Every shipped recipe parses, reads back, defines what its method needs, and is documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.merging.method import METHODS
from evomerge.merging.stages import models_of
from evomerge.recipes import (
    Recipe,
    count_layers,
    parse_recipes,
    plan,
    read_recipes,
    resolve_parameter,
    write_recipes,
)
from evomerge.zoo.family import FAMILY

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(FOLDER.rglob("*.yaml"))
NAMES = [f"model.layers.{i}.{part}.weight" for i in range(4) for part in ("self_attn.q_proj", "mlp.up_proj")]
NAMES += ["model.embed_tokens.weight", "model.norm.weight"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_means_something_for_every_tensor(path: Path) -> None:
    stages = read_recipes(path)
    assert [stage.recipe for stage in parse_recipes(write_recipes(stages))] == [stage.recipe for stage in stages]
    for stage in stages:
        check_recipe(stage.recipe)


def check_recipe(recipe: Recipe) -> None:
    """Assert that every tensor has a value for each parameter that the method needs."""
    method = METHODS[recipe.merge_method]
    required = [parameter for parameter in method.parameters if parameter.required]
    assert count_layers(NAMES) == 4
    for tensor in plan(recipe, dict.fromkeys(recipe.parents(), NAMES)):
        models = [each.model for each in tensor.inputs if not method.needs_base or each.model != tensor.base]
        for parameter in required:
            for model in models if parameter.per_model else [None]:
                value = resolve_parameter(
                    recipe,
                    parameter.name,
                    tensor=tensor.name,
                    depth=tensor.depth,
                    model=model,
                    default=None,
                    slice_index=tensor.slice_index,
                )
                assert parameter.low <= value <= parameter.high


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is_and_how_to_use_it(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert f"#   evomerge merge {path.stem} " in text
    assert f"`{path.stem}`" in (FOLDER / "README.md").read_text()


def test_recipes_merge_models_that_the_zoo_has() -> None:
    named = {parent for path in FILES for parent in models_of(read_recipes(path))}
    assert named <= {f"zoo/{name}" for name in FAMILY}


def test_there_are_recipes() -> None:
    assert len(FILES) >= 5
