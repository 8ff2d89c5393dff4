"""Both engines on real (tiny) models: they agree bit for bit, and with what transformers loads."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, ConfigError, ExportError, MergeError
from evomerge.merging import InPlaceMerger, Parents, in_place, merge_tensors, merge_to_folder
from evomerge.merging.tensors import merge_tensor
from evomerge.recipes import Recipe, parse_recipe, read_recipe
from evomerge.testing.tiny_models import tiny_family

METHODS = {
    "linear": {},
    "task_arithmetic": {"lambda": 0.9},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.6},
    "dare_ties": {"density": 0.6},
    "slerp": {"t": 0.3},
    "passthrough": {},
}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return tiny_family(tmp_path_factory.mktemp("family"), dtype="bfloat16", shard_size="40KB")


def recipe_for(method, paths, **fields):
    names = {"slerp": "a", "passthrough": "b"}.get(method, "abc")
    weight = {} if method in ("slerp", "passthrough") else {"weight": 0.4}
    models = [{"model": str(paths[name]), "parameters": weight} for name in names if name in paths]
    base = {} if method in ("linear", "passthrough") else {"base_model": str(paths["base"])}
    return Recipe.model_validate(
        {"merge_method": method, "models": models, "parameters": METHODS[method], **base, **fields}
    )


def opened(paths):
    return Parents.open([str(path) for path in paths.values()])


def resident(paths, **options):
    return InPlaceMerger(opened(paths), base=str(paths["base"]), **options)


def assert_same_weights(model, folder):
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not any(info.values())
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    return loaded


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gpt2", "qwen3_moe"])
def test_resident_model_equals_the_exported_one_bit_for_bit(tmp_path, architecture):
    """T14 is here too: Qwen3-MoE fuses the experts of its checkpoint while loading."""
    dtype = "bfloat16" if architecture == "llama" else "float32"
    paths = tiny_family(tmp_path / "family", architecture, dtype=dtype)
    merger = resident(paths)
    assert merger._resident.targets is not None
    for method in METHODS:
        recipe = recipe_for(method, paths, seed=3)
        merger.merge(recipe)
        assert_same_weights(merger.model, merge_to_folder(recipe, tmp_path / method, max_shard_size="50KB"))


def test_merging_again_and_in_another_order_changes_no_bit(family):
    merger = resident(family)
    recipes = [recipe_for(method, family) for method in METHODS]
    expected = {}
    for recipe in recipes:
        merger.merge(recipe)
        expected[recipe.hash] = {name: value.clone() for name, value in merger.model.state_dict().items()}
    for recipe in [*reversed(recipes), *recipes]:
        merger.merge(recipe)
        state = merger.model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected[recipe.hash].items())


def test_parents_are_never_written_to(family):
    parents = opened(family)
    before = {r: {n: parents.tensor(r, n).clone() for n in c.tensors} for r, c in parents.checkpoints.items()}
    merger = InPlaceMerger(parents, base=str(family["base"]))
    for method in METHODS:
        merger.merge(recipe_for(method, family))
    assert all(torch.equal(parents.tensor(r, n), value) for r, all_ in before.items() for n, value in all_.items())


def test_only_what_changed_is_merged_again(family, monkeypatch):
    merged = []

    def counted(chosen, step, *rest, **options):
        merged.append(step.name)
        return merge_tensor(chosen, step, *rest, **options)

    monkeypatch.setattr(in_place, "merge_tensor", counted)
    merger, fresh = resident(family), resident(family)
    first = recipe_for("ties", family)
    weights = [{"filter": "layers.1.mlp", "value": 0.9}, {"value": 0.4}]
    models = [{"model": entry.model, "parameters": {"weight": weights}} for entry in first.models]
    second = Recipe.model_validate({**first.model_dump(exclude={"models"}), "models": models})
    merger.merge(first)
    everything, merged[:] = list(merged), []
    merger.merge(first)
    assert merged == []
    merger.merge(second)
    assert merged == [name for name in everything if "layers.1.mlp" in name]
    fresh.merge(second)
    ours, theirs = merger.model.state_dict(), fresh.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_after_a_merge_that_fails_half_way_the_next_one_is_right(family, monkeypatch):
    merger, fresh = resident(family), resident(family)
    first, second = recipe_for("linear", family), recipe_for("ties", family)
    merger.merge(first)

    def failing(chosen, step, *rest, **options):
        if "layers.1" in step.name:
            options["out"].fill_(9)
            raise MergeError("in the middle")
        return merge_tensor(chosen, step, *rest, **options)

    monkeypatch.setattr(in_place, "merge_tensor", failing)
    with pytest.raises(MergeError, match="in the middle"):
        merger.merge(second)
    monkeypatch.undo()
    for recipe in (first, second):
        merger.merge(recipe)
        fresh.merge(recipe)
        ours, theirs = merger.model.state_dict(), fresh.model.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_dare_depends_on_seed_tensor_and_parent_only(family):
    """T18: the same masks with other models around, in another order, with another number of threads."""
    parents, one = opened(family), recipe_for("dare_linear", {k: family[k] for k in ("base", "a")}, seed=5)
    others = {
        "merge_method": "dare_linear",
        "base_model": one.base_model,
        "parameters": {"density": 0.6},
        "seed": 5,
    }
    models = [{"model": str(family[n]), "parameters": {"weight": 0.4 if n == "a" else 0.0}} for n in "cba"]
    several = Recipe.model_validate({**others, "models": models})
    first = dict(merge_tensors(one, parents))
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    second = dict(merge_tensors(several, parents))
    torch.set_num_threads(threads)
    assert all(torch.equal(first[name], second[name]) for name in first)
    reseeded = dict(merge_tensors(one.model_copy(update={"seed": 6}), parents))
    assert any(not torch.equal(first[name], reseeded[name]) for name in first)
    unseeded, zero = (dict(merge_tensors(one.model_copy(update={"seed": s}), parents)) for s in (None, 0))
    assert all(torch.equal(unseeded[name], zero[name]) for name in first)


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
@pytest.mark.parametrize("out_dtype", [None, "float32", "bfloat16"])
def test_dtypes_come_out_as_asked(family, tmp_path, dtype, out_dtype):
    recipe = recipe_for("linear", family, dtype=dtype, out_dtype=out_dtype)
    out = merge_to_folder(recipe, tmp_path / "out")
    expected = out_dtype or dtype or "bfloat16"
    checkpoint = Checkpoint(out)
    assert {info.dtype for info in checkpoint.tensors.values()} == {getattr(torch, expected)}
    assert checkpoint.config["dtype"] == expected


def test_sums_are_float32_and_rounded_once(family):
    parents, recipe = opened(family), recipe_for("linear", family)
    for name, merged in merge_tensors(recipe, parents):
        tensors = [parents.tensor(entry.model, name).double() for entry in recipe.models]
        exact = sum(tensors) / 3
        half_a_unit = exact.abs() * 2.0**-8 + 1e-8  # of bfloat16, and what float32 sums may be off
        assert ((merged.double() - exact).abs() <= half_a_unit).all(), name


def test_resident_model_may_be_wider_than_the_checkpoint(family):
    merger = resident(family, dtype="float32")
    assert merger.model.dtype == torch.float32
    merger.merge(recipe_for("linear", family, dtype="float32"))
    assert any(not torch.equal(p, p.bfloat16().float()) for p in merger.model.parameters())


def test_rotary_buffers_are_those_of_the_config(family):
    """T6: non-persistent buffers are in no file and must not be left uninitialised."""
    merger = resident(family)
    merger.merge(recipe_for("linear", family))
    fresh = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(family["base"]))
    buffers = dict(merger.model.named_buffers())
    assert any("inv_freq" in name for name in buffers)
    for name, buffer in fresh.named_buffers():
        assert torch.equal(buffers[name], buffer), name


def test_resident_model_is_ready_to_evaluate_and_keeps_its_identity(family):
    merger = resident(family)
    model, parameter = merger.model, next(merger.model.parameters())
    merger.merge(recipe_for("linear", family))
    assert merger.model is model
    assert next(merger.model.parameters()) is parameter
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.generation_config.eos_token_id == 2
    assert merger.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(family["base"]).get_vocab()


def test_stacked_layers_make_a_deeper_model(family, tmp_path):
    sources = [("a", 0, 2), ("b", 1, 2), ("c", 0, 2)]
    slices = [{"sources": [{"model": str(family[n]), "layer_range": [s, e]}]} for n, s, e in sources]
    recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": slices})
    model = AutoModelForCausalLM.from_pretrained(merge_to_folder(recipe, tmp_path / "out"))
    assert model.config.num_hidden_layers == len(model.model.layers) == 5
    third = Checkpoint(family["b"]).tensor("model.layers.1.mlp.up_proj.weight")
    assert torch.equal(model.model.layers[2].mlp.up_proj.weight, third)
    assert torch.equal(model.model.embed_tokens.weight, Checkpoint(family["a"]).tensor("model.embed_tokens.weight"))
    assert torch.equal(model.lm_head.weight, Checkpoint(family["c"]).tensor("lm_head.weight"))
    merger = resident(family)
    merger.merge(recipe)  # as a path, with no weights copied
    tokens = torch.arange(4, 20).view(2, 8)
    torch.testing.assert_close(merger.model(tokens).logits, model(tokens).logits)


def test_per_layer_fields_of_the_config_follow_the_layers(tmp_path):
    paths = tiny_family(tmp_path / "family", "gemma2", parents=1, layers=4)
    kinds = json.loads((paths["a"] / "config.json").read_text())["layer_types"]
    slices = [{"sources": [{"model": str(paths["a"]), "layer_range": span}]} for span in ([0, 3], [0, 4])]
    recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": slices})
    loaded = AutoModelForCausalLM.from_pretrained(merge_to_folder(recipe, tmp_path / "out"))
    assert loaded.config.layer_types == [kinds[i] for i in (0, 1, 2, 0, 1, 2, 3)]
    assert loaded.config.num_hidden_layers == 7


def untie(folder, out):
    """Give a model with tied embeddings a head of its own."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    tensors = load_file(out / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_tied_parents_stay_tied(tmp_path):
    paths = tiny_family(tmp_path / "family", tied=True)
    recipe = recipe_for("linear", paths)
    merger = resident(paths)
    merger.merge(recipe)
    merger.model.tie_weights()  # as lm-eval does: must change nothing
    loaded = assert_same_weights(merger.model, merge_to_folder(recipe, tmp_path / "out"))
    assert loaded.config.tie_word_embeddings
    assert "lm_head.weight" not in Checkpoint(tmp_path / "out").tensors


def test_one_untied_parent_unties_the_merge_before_the_model_is_built(tmp_path):
    """T5: tie_weights() would otherwise throw the merged head away."""
    paths = tiny_family(tmp_path / "family", tied=True)
    paths["b"] = untie(paths["b"], tmp_path / "untied")
    recipe = recipe_for("linear", paths)
    merger = resident(paths)
    merger.merge(recipe)
    merger.model.tie_weights()
    loaded = assert_same_weights(merger.model, merge_to_folder(recipe, tmp_path / "out"))
    assert not loaded.config.tie_word_embeddings
    heads = [Checkpoint(paths[n]).tensor("lm_head.weight" if n == "b" else "model.embed_tokens.weight") for n in "abc"]
    assert torch.allclose(merger.model.lm_head.weight, sum(heads) / 3, atol=1e-6)
    tied_only = recipe_for("linear", {k: v for k, v in paths.items() if k != "b"})
    merger.merge(tied_only)
    assert torch.equal(merger.model.lm_head.weight, merger.model.model.embed_tokens.weight)


def test_head_that_is_stored_twice_is_merged_once(tmp_path):
    paths = tiny_family(tmp_path / "family", tied=True, parents=2)
    for path in paths.values():
        tensors = load_file(path / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    out = merge_to_folder(recipe_for("linear", paths), tmp_path / "out")
    assert "lm_head.weight" not in Checkpoint(out).tensors
    assert AutoModelForCausalLM.from_pretrained(out).config.tie_word_embeddings


def test_old_checkpoints_without_the_models_prefix_are_merged(tmp_path):
    """T14: GPT-2's first files say h.0.attn where the model says transformer.h.0.attn."""
    paths = tiny_family(tmp_path / "family", "gpt2", parents=2)
    for path in paths.values():
        tensors = load_file(path / "model.safetensors")
        old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        save_file(old, path / "model.safetensors", metadata={"format": "pt"})
    recipe = recipe_for("ties", paths)
    merger = resident(paths)
    merger.merge(recipe)
    assert_same_weights(merger.model, merge_to_folder(recipe, tmp_path / "out"))


def test_integer_buffers_and_stored_rotations_are_handled(family, tmp_path):
    folders = {}
    for name in ("base", "a"):
        folders[name] = tmp_path / name
        shutil.copytree(family[name], folders[name])
        for index in folders[name].glob("*.safetensors*"):
            index.unlink()
        stored = {
            "layers.0.rotary_emb.inv_freq": torch.ones(4),
            "steps": torch.tensor([3]),
            "w": torch.ones(2),
        }
        save_file(stored, folders[name] / "model.safetensors")
    merged = dict(merge_tensors(recipe_for("task_arithmetic", folders), opened(folders)))
    assert merged.keys() == {"steps", "w"}
    assert torch.equal(merged["steps"], torch.tensor([3]))


def test_folder_holds_what_others_need(family, tmp_path):
    recipe = recipe_for("ties", family, tokenizer_source=str(family["c"]))
    (family["c"] / "chat_template.jinja").write_text("from c: {{ messages }}")
    out = merge_to_folder(recipe, tmp_path / "out", max_shard_size="30KB")
    assert read_recipe(out / "recipe.yaml") == recipe
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (family["c"] / name).read_bytes()
    assert (out / "generation_config.json").read_bytes() == (family["base"] / "generation_config.json").read_bytes()
    assert len(list(out.glob("model-*.safetensors"))) > 1
    templated = recipe_for("linear", family, chat_template="{{ 'mine' }}")
    assert (merge_to_folder(templated, tmp_path / "mine") / "chat_template.jinja").read_text() == "{{ 'mine' }}"


def test_nan_in_a_parent_is_found_by_tensor_and_parent(family, tmp_path):
    poisoned = shutil.copytree(family["a"], tmp_path / "poisoned")
    file = next(iter(sorted(poisoned.glob("*.safetensors"))))
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].flatten()[0] = float("nan")
    save_file(tensors, file)
    recipe = recipe_for("linear", {**family, "a": poisoned})
    with pytest.raises(CheckpointError, match=rf"{poisoned}: tensor {name} holds NaN or Inf; use another copy"):
        merge_to_folder(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overflow_of_the_recipes_dtype_is_found(family, tmp_path):
    models = [{"model": str(family["a"]), "parameters": {"weight": 1e9}}]
    recipe = Recipe.model_validate(
        {"merge_method": "linear", "models": models, "parameters": {"normalize": False}, "dtype": "float16"}
    )
    with pytest.raises(MergeError, match="which no parent does; the recipe's numbers overflow its dtype"):
        merge_to_folder(recipe, tmp_path / "out")


def test_bad_recipes_and_bad_destinations_stop_before_anything_is_written(family, tmp_path):
    with pytest.raises(ConfigError, match=r"density is 1\.5, outside"):
        merge_to_folder(recipe_for("ties", family, parameters={"density": 1.5}), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(ExportError, match="exists and is not empty"):
        merge_to_folder(recipe_for("linear", family), tmp_path / "full")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_a_recipe_that_names_a_stranger_is_refused(family):
    recipe = parse_recipe("merge_method: linear\nmodels: [{model: who/knows, parameters: {weight: 1}}]")
    with pytest.raises(CheckpointError, match=r"'who/knows', which is not among the opened parents: .*base"):
        resident(family).merge(recipe)
