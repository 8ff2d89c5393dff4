"""Which tensors a module has, and what is refused (compared with mergekit in tests/references)."""

from __future__ import annotations

import pytest

from evomerge.errors import ConfigError
from evomerge.recipes import Recipe, parse_recipe, plan
from evomerge.recipes.modules import owners

T5 = ("encoder.block.0.q.weight", "encoder.block.1.q.weight", "decoder.block.0.q.weight", "shared.weight")
VLM = (
    *("model.language_model.layers.0.q.weight", "model.language_model.embed_tokens.weight", "lm_head.weight"),
    *("model.visual.blocks.0.attn.qkv.weight", "model.visual.merger.mlp.0.weight", "model.visual.patch_embed.weight"),
)


def recipe(*modules: str) -> Recipe:
    entries = "".join(f"  {name}: {{models: [{{model: a}}]}}\n" for name in modules)
    return parse_recipe(f"merge_method: linear\nparameters: {{weight: 1}}\nmodules:\n{entries}")


def owned(modules: tuple[str, ...], names: tuple[str, ...]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for tensor, module in owners(modules, names).items():
        found.setdefault(module, set()).add(tensor)
    return found


def test_the_longest_beginning_tells_the_module() -> None:
    modules = ("text_decoder", "vision_tower", "multi_modal_projector")
    assert owned(modules, VLM) == {
        "text_decoder": set(VLM[:3]),
        "vision_tower": {VLM[3], VLM[5]},
        "multi_modal_projector": {VLM[4]},
    }
    assert owned(("encoder", "decoder", "shared"), (*T5, "lm_head.weight"))["shared"] == {T5[3], "lm_head.weight"}


def test_a_beginning_may_be_a_modules_name_and_default_takes_the_rest() -> None:
    assert owned(("model.visual", "default"), VLM) == {"model.visual": set(VLM[3:]), "default": set(VLM[:3])}


def test_each_module_is_planned_by_itself() -> None:
    planned = {tensor.name: tensor for tensor in plan(recipe("encoder", "decoder", "shared"), {"a": T5})}
    assert planned.keys() == set(T5)
    assert [planned[name].depth for name in T5] == [0.0, 1.0, 1.0, 0.0]
    assert [planned[name].slice_index for name in T5] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (("encoder", "shared"), "1 tensor belongs to the module 'decoder', of which the recipe says nothing"),
        (
            ("encoder", "decoder", "shared", "vision_tower"),
            "modules.vision_tower: these models have no tensors of a module",
        ),
        (("encodr", "decoder", "shared"), "did you mean 'encoder' or 'decoder'?"),
    ],
)
def test_modules_that_do_not_fit_the_models_are_refused(modules: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        plan(recipe(*modules), {"a": T5})
    assert message in str(raised.value)


def test_a_problem_inside_a_module_names_it() -> None:
    text = "merge_method: linear\nmodules:\n  encoder: {slices: [{sources: [{model: a, layer_range: [0, 3]}]}]}\n"
    text += "  default: {models: [{model: a}]}\n"
    with pytest.raises(ConfigError, match=r"module 'encoder': slices\[0\]: layer_range \[0, 3\] reaches beyond"):
        plan(parse_recipe(text), {"a": T5})
