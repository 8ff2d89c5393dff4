"""Recipes to tensors (compared with mergekit's planner in tests/references)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.recipes import count_layers, find_stacks, layer_of, parse_recipe, plan, stack_of, with_layer


def names(layers: int) -> list[str]:
    inside = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in ("attn", "mlp")]
    return ["model.embed_tokens.weight", *inside, "model.norm.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.11.mlp.experts.3.w1.weight", 11),
        ("transformer.h.0.ln_1.weight", 0),
        ("h.7.attn.c_attn.bias", 7),
        ("0.weight", 0),
        ("model.embed_tokens.weight", None),
        ("fc1.weight", None),
        ("model.conv2d.7", None),
    ],
)
def test_the_first_number_between_dots_is_the_layer(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


@given(st.integers(0, 200), st.integers(0, 200))
def test_renumbering_changes_the_layer_and_nothing_else(old: int, new: int) -> None:
    name = f"model.layers.{old}.mlp.experts.{old}.w1.weight"
    assert with_layer(name, new) == f"model.layers.{new}.mlp.experts.{old}.w1.weight"


def test_models_are_one_slice_over_all_layers_with_the_base_last() -> None:
    recipe = parse_recipe("merge_method: ties\nbase_model: z\nmodels: [{model: b}, {model: a}]")
    planned = {tensor.name: tensor for tensor in plan(recipe, dict.fromkeys("abz", names(3)))}
    assert set(planned) == set(names(3))
    middle = planned["model.layers.1.mlp.weight"]
    assert (middle.depth, middle.layer, middle.slice_index, middle.base) == (0.5, 1, 0, "z")
    assert [each.model for each in middle.inputs] == ["b", "a", "z"]
    assert {each.tensor for each in middle.inputs} == {middle.name}
    outside = [planned[n] for n in names(3) if layer_of(n) is None]
    assert [tensor.depth for tensor in outside] == [0.0, 0.0, 0.0]


def test_a_stack_renumbers_layers_and_takes_embeddings_first_and_head_last() -> None:
    recipe = parse_recipe(
        "merge_method: passthrough\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 3]}]\n- sources: [{model: b, layer_range: [3, 4]}]\n"
    )
    planned = plan(recipe, {"a": names(4), "b": names(4)})
    assert [tensor.name for tensor in planned if tensor.layer is not None] == sorted(
        name for name in names(4) if layer_of(name) is not None
    )
    by_name = {tensor.name: tensor for tensor in planned}
    last = by_name["model.layers.3.mlp.weight"]
    assert (last.inputs[0].model, last.inputs[0].tensor) == ("b", "model.layers.3.mlp.weight")
    assert (last.depth, last.slice_index) == (1.0, 1)
    assert by_name["model.embed_tokens.weight"].inputs[0].model == "a"
    assert by_name["lm_head.weight"].inputs[0].model == "b"
    assert by_name["model.norm.weight"].inputs[0].model == "b"


def test_models_of_different_depth_are_refused() -> None:
    recipe = parse_recipe("merge_method: linear\nmodels: [{model: a}, {model: b}]")
    with pytest.raises(ConfigError, match="'a' has 2, 'b' has 3; use slices"):
        plan(recipe, {"a": names(2), "b": names(3)})


def test_a_layer_range_beyond_the_last_layer_is_refused() -> None:
    recipe = parse_recipe("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 5]}]}]")
    with pytest.raises(ConfigError, match=r"slices\[0\]: layer_range \[0, 5\] reaches beyond 'a', which has 4"):
        plan(recipe, {"a": names(4)})


def test_layers_are_counted_from_names_alone() -> None:
    assert count_layers(names(5)) == 5
    assert count_layers(["lm_head.weight"]) == 0


def tower(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{i}.{part}.weight" for i in range(layers) for part in ("attn.q", "mlp")]


@pytest.mark.parametrize(
    ("tensor_names", "stacks"),
    [
        (names(4), {"model.layers": 4}),
        (["0.weight", "2.weight"], {"": 3}),
        (["wte.weight", "h.0.ln.weight", "h.11.ln.weight"], {"h": 12}),
        (tower("encoder.block.0.layer", 2) + tower("encoder.block.1.layer", 2), {"encoder.block": 2}),  # T5
        (tower("encoder.layers.0.blocks", 2) + tower("encoder.layers.1.blocks", 6), {"encoder.layers": 2}),  # Swin
        ([f"model.layers.{i}.mlp.experts.{e}.w1.weight" for i in (0, 1) for e in range(8)], {"model.layers": 2}),
        (
            tower("text_model.layers", 2) + tower("vision_model.layers", 5),
            {"text_model.layers": 2, "vision_model.layers": 5},
        ),
        ([*tower("visual.blocks", 3), "visual.merger.mlp.0.weight", "visual.merger.mlp.2.bias"], {"visual.blocks": 3}),
        (["lm_head.weight"], {}),
    ],
)
def test_stacks_are_found_by_what_is_before_the_first_number(tensor_names: list[str], stacks: dict[str, int]) -> None:
    assert find_stacks(tensor_names) == stacks
    assert count_layers(tensor_names) == max(stacks.values(), default=0)
    for name in tensor_names:
        stack = stack_of(name)
        assert (stack is None) == (layer_of(name) is None)
        assert stack is None or name.startswith(f"{stack}.{layer_of(name)}." if stack else f"{layer_of(name)}.")


def test_depth_counts_the_layers_of_a_tensors_own_stack() -> None:
    recipe = parse_recipe("merge_method: linear\nmodels: [{model: a}, {model: b}]")
    both = ["vision.patch_embed.weight", *tower("vision.blocks", 5), *tower("text.layers", 3), "proj.0.weight", "head"]
    planned = {tensor.name: tensor for tensor in plan(recipe, {"a": both, "b": both})}
    assert planned.keys() == set(both)
    places = {name: (t.stack, t.layer, t.depth) for name, t in planned.items() if name.endswith("mlp.weight")}
    assert places == {f"vision.blocks.{i}.mlp.weight": ("vision.blocks", i, i / 4) for i in range(5)} | {
        f"text.layers.{i}.mlp.weight": ("text.layers", i, i / 2) for i in range(3)
    }
    outside = [planned[name] for name in ("vision.patch_embed.weight", "proj.0.weight", "head")]
    assert {(tensor.stack, tensor.layer, tensor.depth) for tensor in outside} == {(None, None, 0.0)}


def test_slices_do_not_say_of_which_stack_they_are() -> None:
    recipe = parse_recipe("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]")
    with pytest.raises(ConfigError, match=r"several stacks of layers \(text, vision\).*use models"):
        plan(recipe, {"a": tower("vision", 3) + tower("text", 2)})


def test_stacks_of_different_depth_are_named() -> None:
    recipe = parse_recipe("merge_method: linear\nmodels: [{model: a}, {model: b}]")
    ours, theirs = tower("vision", 3) + tower("text", 2), tower("vision", 4) + tower("text", 2)
    with pytest.raises(ConfigError, match="equally many layers in vision: 'a' has 3, 'b' has 4"):
        plan(recipe, {"a": ours, "b": theirs})


def test_a_projection_out_of_the_embedding_space_comes_after_the_layers() -> None:
    """GPT-NeoX calls its head embed_out; a stack takes it from the last slice."""
    recipe = parse_recipe(
        "merge_method: passthrough\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 1]}]\n- sources: [{model: b, layer_range: [0, 1]}]\n"
    )
    every = ["embed_in.weight", *tower("layers", 1), "embed_out.weight"]
    planned = {tensor.name: tensor.inputs[0].model for tensor in plan(recipe, {"a": every, "b": every})}
    assert (planned["embed_in.weight"], planned["embed_out.weight"]) == ("a", "b")
