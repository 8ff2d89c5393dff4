"""Every family of architectures: what transformers loads is the merge, computed by hand on what transformers loads."""

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.errors import MergeError
from evomerge.merging import InPlaceMerger, Parents, check_recipe, merge_to_folder
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import FAMILIES, tiny_family

NAMES = ("base", "a", "b")
# stacks as the models call them, said here once more: what is numbered and a run of layers
LAYERS = re.compile(r"^(.*?(?:layers?|blocks?|block|h|stages|conv_layers))\.(\d+)\.")
QUICK = ("gpt2", "mixtral", "gpt_oss", "mamba", "bert", "vit", "resnet", "clip", "t5", "llava", "qwen2_vl", "gemma3")
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def loaded(folder):
    """Return the model that transformers makes of a folder."""
    config = json.loads((folder / "config.json").read_text())
    model, info = getattr(transformers, config["architectures"][0]).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def blend(paths, low=0.3, high=0.7):
    entries = [{"model": str(paths["a"]), "parameters": {"weight": [low, high]}}]
    entries += [{"model": str(paths["b"]), "parameters": {"weight": 0.4}}]
    return Recipe.model_validate(
        {"merge_method": "task_arithmetic", "base_model": str(paths["base"]), "models": entries, "dtype": "float32"}
    )


def by_hand(states):
    """Return base + (0.3 + 0.4·depth)·(a − base) + 0.4·(b − base) in float64; integers from the base."""
    depths = {}
    for name in states["base"]:
        if match := LAYERS.match(name):
            depths[match[1]] = max(depths.get(match[1], 0), int(match[2]))
    merged = {}
    for name, base in states["base"].items():
        match = LAYERS.match(name)
        depth = 0.0 if match is None else int(match[2]) / depths[match[1]]
        base, a, b = (states[each][name].double() for each in NAMES)
        merged[name] = base + (0.3 + 0.4 * depth) * (a - base) + 0.4 * (b - base)
        if not states["base"][name].is_floating_point():
            merged[name] = base
    return merged


@pytest.mark.parametrize("architecture", EVERY)
def test_what_transformers_loads_is_the_merge_by_hand_and_the_resident_model(tmp_path, architecture):
    paths = tiny_family(tmp_path, architecture, parents=2, layers=3)
    recipe = blend(paths)
    parents = Parents.open(recipe.parents())
    assert check_recipe(recipe, parents) == []
    expected = by_hand({name: loaded(paths[name]).state_dict() for name in NAMES})
    exported = loaded(merge_to_folder(recipe, tmp_path / "out"))
    merger = InPlaceMerger(parents, base=str(paths["base"]))
    merger.merge(recipe)
    resident = merger.model.state_dict()
    assert type(merger.model) is type(exported)
    assert merger._resident.targets is not None, "its tensors were not found: every merge would reload the model"
    for name, value in exported.state_dict().items():
        assert torch.equal(value, resident[name]), name
        assert (value.double() - expected[name]).abs().max() <= 2e-6 * expected[name].abs().max(), name


@pytest.mark.parametrize("architecture", ["mixtral", "bert", "t5", "llava"])
def test_half_precision_models_are_merged_into_the_same_class_and_dtype(tmp_path, architecture):
    paths = tiny_family(tmp_path, architecture, parents=2, dtype="bfloat16")
    recipe = blend(paths).model_copy(update={"dtype": None})
    model = loaded(merge_to_folder(recipe, tmp_path / "out"))
    merger = InPlaceMerger(Parents.open(recipe.parents()), base=str(paths["base"]))
    merger.merge(recipe)
    resident = merger.model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, resident[name]), name
        assert value.dtype == torch.bfloat16, name


def rewrite(folder, change):
    """Change a model folder's tensors: ``change(tensors)`` returns the new ones."""
    file = folder / "model.safetensors"
    tensors = change({name: value.clone() for name, value in load_file(file).items()})
    save_file(tensors, file, metadata={"format": "pt"})


OLD_NAMES = {
    "gpt2": lambda name: name.removeprefix("transformer."),
    "bert": lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    ),
    "llava": lambda name: (
        "model.language_model." + name.removeprefix("language_model.model.")
        if name.startswith("language_model.model.")
        else "lm_head.weight"
        if name == "language_model.lm_head.weight"
        else f"model.{name}"
    ),
    "vit": lambda name: name.removeprefix("vit.") if not name.startswith("classifier") else name,
}


@pytest.mark.parametrize("renamed", [("base",), ("a",), ("base", "a", "b")], ids="+".join)
@pytest.mark.parametrize("architecture", OLD_NAMES)
def test_models_written_by_other_versions_merge_as_if_written_by_one(tmp_path, architecture, renamed):
    paths = tiny_family(tmp_path, architecture, parents=2)
    plain = merge_to_folder(blend(paths), tmp_path / "plain")
    for name in renamed:
        rewrite(paths[name], lambda tensors: {OLD_NAMES[architecture](n): t for n, t in tensors.items()})
    recipe = blend(paths)
    parents = Parents.open(recipe.parents())
    assert check_recipe(recipe, parents) == []
    expected = loaded(plain).state_dict()
    exported = loaded(merge_to_folder(recipe, tmp_path / "out")).state_dict()
    merger = InPlaceMerger(parents, base=str(paths["base"]))
    merger.merge(recipe)
    assert merger._resident.targets is not None
    assert exported.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(exported[name], value), name
        assert torch.equal(merger.model.state_dict()[name], value), name


@pytest.mark.parametrize("fused", [("base",), ("b",), ("base", "a", "b")], ids="+".join)
@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_experts_stored_one_by_one_and_in_one_tensor_merge_with_each_other(tmp_path, architecture, fused):
    paths = tiny_family(tmp_path, architecture, parents=2)
    expected = loaded(merge_to_folder(blend(paths), tmp_path / "plain")).state_dict()
    for name in fused:
        state = loaded(paths[name]).state_dict()
        rewrite(paths[name], lambda tensors, state=state: {n: t.clone().contiguous() for n, t in state.items()})
        assert "model.layers.0.mlp.experts.gate_up_proj" in Parents.open([str(paths[name])])[str(paths[name])].tensors
    recipe = blend(paths)
    parents = Parents.open(recipe.parents())
    assert check_recipe(recipe, parents) == []
    exported = loaded(merge_to_folder(recipe, tmp_path / "out")).state_dict()
    merger = InPlaceMerger(parents, base=str(paths["base"]))
    merger.merge(recipe)
    for name, value in expected.items():
        assert torch.equal(exported[name], value), name
        assert torch.equal(merger.model.state_dict()[name], value), name


HEADS = {
    "gemma2": "lm_head.weight",
    "gemma3": "lm_head.weight",
    "t5": "lm_head.weight",
    "bart": "lm_head.weight",
    "bert": "cls.predictions.decoder.weight",
    "whisper": "proj_out.weight",
}


@pytest.mark.parametrize("architecture", HEADS)
def test_one_parent_with_a_head_of_its_own_unties_the_merge_of_any_family(tmp_path, architecture):
    paths = tiny_family(tmp_path, architecture, parents=2, tied=True)
    head = loaded(paths["a"]).state_dict()[HEADS[architecture]] * 1.5 + 0.1
    rewrite(paths["a"], lambda tensors: {**tensors, HEADS[architecture]: head})
    recipe = blend(paths)
    parents = Parents.open(recipe.parents())
    assert check_recipe(recipe, parents) == []
    exported = loaded(merge_to_folder(recipe, tmp_path / "out")).state_dict()
    merger = InPlaceMerger(parents, base=str(paths["base"]))
    merger.merge(recipe)
    assert merger._resident.targets is not None
    base, b = (loaded(paths[name]).state_dict()[HEADS[architecture]].double() for name in ("base", "b"))
    expected = base + 0.3 * (head.double() - base) + 0.4 * (b - base)
    assert (exported[HEADS[architecture]].double() - expected).abs().max() < 1e-5
    resident = merger.model.state_dict()
    assert [name for name, value in exported.items() if not torch.equal(value, resident[name])] == []


def test_settings_of_processors_go_with_the_merged_model(tmp_path):
    paths = tiny_family(tmp_path, "vit", parents=2)
    files = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
    for name, path in paths.items():
        for file in files:
            (path / file).write_text(json.dumps({"from": name}))
    out = merge_to_folder(blend(paths), tmp_path / "out")
    assert {json.loads((out / file).read_text())["from"] for file in files} == {"base"}


def test_heads_of_attention_that_differ_in_a_nested_config_are_named(tmp_path):
    paths = tiny_family(tmp_path, "llava", parents=2)
    config = json.loads((paths["b"] / "config.json").read_text())
    config["vision_config"]["num_attention_heads"] = 2
    config["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    (paths["b"] / "config.json").write_text(json.dumps(config))
    recipe = blend(paths)
    found = [str(problem) for problem in check_recipe(recipe, Parents.open(recipe.parents()))]
    assert any("vision_config.num_attention_heads is 4 in" in each for each in found)
    assert any("rotary embeddings of text_config differ" in each for each in found)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"architectures": ["NovelForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling.NovelForCausalLM"}},
            "its class NovelForCausalLM is not in transformers .* Python files",
        ),
        ({"architectures": ["NovelForCausalLM"]}, "has no class NovelForCausalLM .* a newer version may have it"),
        (
            {"model_type": "novel", "auto_map": {"AutoConfig": "configuration.NovelConfig"}},
            r"needs Python files that the model brings along \(auto_map in config.json\); evomerge runs no code",
        ),
    ],
)
def test_models_with_code_of_their_own_are_not_run_and_still_merge_to_a_folder(tmp_path, change, expected):
    paths = tiny_family(tmp_path, "llama", parents=2)
    for path in paths.values():
        config = json.loads((path / "config.json").read_text()) | change
        (path / "config.json").write_text(json.dumps(config))
        (path / "configuration.py").write_text("raise SystemExit('this code was run')")
        (path / "modeling.py").write_text("raise SystemExit('this code was run')")
    recipe = blend(paths)
    parents = Parents.open(recipe.parents())
    with pytest.raises(MergeError, match=expected):
        InPlaceMerger(parents, base=str(paths["base"]))
    merged = load_file(merge_to_folder(recipe, tmp_path / "out") / "model.safetensors")
    assert merged.keys() == load_file(paths["base"] / "model.safetensors").keys()
    assert not (tmp_path / "out" / "modeling.py").exists()


@pytest.mark.parametrize("architecture", ["vit", "distilbert", "gpt_neox", "mamba", "gpt_oss"])
def test_layers_of_families_with_one_stack_can_be_stacked(tmp_path, architecture):
    paths = tiny_family(tmp_path, architecture, parents=2, layers=3, tied=None if architecture == "vit" else False)
    spans = (("a", [0, 2]), ("b", [1, 3]))
    slices = [{"sources": [{"model": str(paths[name]), "layer_range": span}]} for name, span in spans]
    recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": slices})
    model = loaded(merge_to_folder(recipe, tmp_path / "out"))
    parts = {name: loaded(paths[name]).state_dict() for name in "ab"}
    checked = 0
    for name, value in model.state_dict().items():
        if match := LAYERS.match(name):
            donor, layer = [("a", 0), ("a", 1), ("b", 1), ("b", 2)][int(match[2])]
            assert torch.equal(value, parts[donor][f"{match[1]}.{layer}.{name[match.end() :]}"]), name
            checked += 1
        else:
            donor = "a" if re.search(r"embed(?!_out)|shared", name) else "b"
            assert torch.equal(value, parts[donor][name]), name
    assert checked


@pytest.mark.parametrize("architecture", ["t5", "clip", "llava"])
def test_slices_of_models_with_several_stacks_are_refused(tmp_path, architecture):
    paths = tiny_family(tmp_path, architecture, parents=1)
    slices = [{"sources": [{"model": str(paths["a"]), "layer_range": [0, 2]}]}]
    recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": slices})
    found = [str(problem) for problem in check_recipe(recipe, Parents.open(recipe.parents()))]
    assert "these models have several stacks of layers" in found[0]
