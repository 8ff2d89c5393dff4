"""Every shipped search space builds, has the documented number of genes, and expresses recipes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from evomerge.recipes import parse_recipe, write_recipe, yaml
from evomerge.search_spaces import ParentsInfo, build_search_space, read_search_space

FOLDER = Path(__file__).parents[2] / "search_spaces"
FILES = sorted(FOLDER.rglob("*.yaml"))
PARTS = ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
DOCUMENTED = {
    "global-linear": lambda p, layers: p,
    "recycling": lambda p, layers: p - 1,
    "recycling-free": lambda p, layers: p,
    "evo-merging": lambda p, layers: 2 * p,
    "global-task-arithmetic": lambda p, layers: p,
    "grouped-task-arithmetic": lambda p, layers: 4 * p,
    "smooth-task-arithmetic": lambda p, layers: 10 * p,
    "layerwise-task-arithmetic": lambda p, layers: p * (layers + 1),
    "layerwise-slerp": lambda p, layers: 3 * layers + 1,
    "layerwise-ties": lambda p, layers: 2 * p * (layers + 1),
    "blockwise-dare-ties": lambda p, layers: 2 * p * (math.ceil(layers / 4) + 1),
    "layer-swap": lambda p, layers: 3,
    "layer-routing": lambda p, layers: 2 * p * layers + 21,
    "layer-routing-steps": lambda p, layers: 4 * p * layers + 2,
}
OF_TWO_PARENTS = ("layerwise-slerp", "layer-swap")


def info(parents: int, layers: int) -> ParentsInfo:
    names = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in PARTS]
    names += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    references = {nickname: f"zoo/{nickname}" for nickname in "abcdef"[:parents]}
    return ParentsInfo("zoo/base", references, tuple(sorted(names)), layers, "float32")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("layers", [4, 30])
def test_a_search_space_builds_and_has_as_many_genes_as_documented(path: Path, layers: int) -> None:
    config = read_search_space(path.stem, yaml.loads("x: 1"))
    parents = 2 if path.stem in OF_TWO_PARENTS else 3
    space = build_search_space(config, info(parents, layers))
    assert len(space.genes) == DOCUMENTED[path.stem](parents, layers)
    recipe = space.express(space.starting_points()[0])
    assert parse_recipe(write_recipe(recipe)) == recipe


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_search_space_says_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert f"| `{path.stem}` |" in (FOLDER / "README.md").read_text()


def test_there_are_search_spaces() -> None:
    assert {"layerwise-ties", "layerwise-task-arithmetic", "global-linear", "blockwise-dare-ties"} <= {
        path.stem for path in FILES
    }
