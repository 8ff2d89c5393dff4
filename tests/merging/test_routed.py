"""Paths in the resident model: the logits of a deeper model made of copies, the memory of the parents."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.errors import MergeError
from evomerge.merging import InPlaceMerger, Parents, check_recipe, merge_to_folder
from evomerge.recipes import PathStep, Recipe, layer_of, parse_recipe, path_of, routed_recipe, with_layer
from evomerge.testing.tiny_models import tiny_family

DEPTH = 3
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt_neox")
ARCHITECTURES += ("gpt2", "olmo2", "mixtral", "qwen3_moe")
SINGLE = ("mixtral", "qwen3_moe")  # torch has no float64 kernels for experts
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
SLIDING = {"layer_types": TYPES, "sliding_window": 4, "use_sliding_window": True}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    made = {}

    def make(architecture, **options):
        key = (architecture, repr(options))
        if key not in made:
            folder = tmp_path_factory.mktemp(architecture)
            paths = tiny_family(folder, architecture, parents=2, layers=DEPTH, distance=0.05, **options)
            made[key] = [str(paths["a"]), str(paths["b"])]
        return made[key]

    return make


def random_path(models, seed, scaled=True):
    numbers = random.Random(seed)
    scale = (lambda: numbers.choice((1.0, 1.0, 0.6, 1.4, -0.8))) if scaled else lambda: 1.0
    length = numbers.randint(1, 3 * DEPTH)
    return [PathStep(numbers.choice(models), numbers.randrange(DEPTH), scale()) for _ in range(length)]


def naive(recipe: Recipe, outside: str, dtype=torch.float64):
    """Build the path as a deeper model of copies, in float64, each layer scaling its own input."""
    path = path_of(recipe)
    models = {ref: AutoModelForCausalLM.from_pretrained(ref).state_dict() for ref in recipe.parents()}
    config = AutoConfig.from_pretrained(outside)
    types = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(path)
    if types:
        config.layer_types = [types[step.layer] for step in path]
    state = {name: tensor for name, tensor in models[outside].items() if layer_of(name) is None}
    for number, step in enumerate(path):
        for name, tensor in models[step.model].items():
            if layer_of(name) == step.layer:
                state[with_layer(name, number)] = tensor
    model = AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(state)
    model = model.to(dtype)
    (layers,) = [
        m
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.ModuleList) and n.rpartition(".")[2] in ("layers", "h")
    ]
    for layer, step in zip(layers, path, strict=True):
        layer.register_forward_pre_hook(lambda _, args, scale=step.scale: (args[0] * scale, *args[1:]))
    return model


def words(seed=0, rows=2, length=9):
    return torch.randint(4, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def options(architecture):
    """Return config fields: windows where there can be some, and an eps of norms that is nothing beside the stream."""
    sliding = SLIDING if architecture in ("qwen2", "gemma3_text") else {}
    field = {"gpt2": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps", "phi": "layer_norm_eps"}
    return {**sliding, field.get(architecture, "rms_norm_eps"): 1e-12}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_path_is_the_deeper_model_of_its_layers(architecture, family):
    models = family(architecture, extra=options(architecture))
    merger = InPlaceMerger(Parents.open(models), base=models[0])
    merger.model.set_attn_implementation("eager")
    for seed in range(4):
        recipe = routed_recipe(random_path(models, seed), outside=models[seed % 2])
        merger.merge(recipe)
        expected = naive(recipe, models[seed % 2], torch.float32 if architecture in SINGLE else torch.float64)
        expected.set_attn_implementation("eager")
        found = merger.model(words()).logits
        torch.testing.assert_close(found.double(), expected(words()).logits.double(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_exported_is_what_was_run(architecture, family, tmp_path):
    """With the usual eps of norms too, which the exported model adds to another mean square than the path does."""
    models = family(architecture, extra=SLIDING if architecture in ("qwen2", "gemma3_text") else None)
    merger = InPlaceMerger(Parents.open(models), base=models[0])
    for seed in range(4):
        recipe = routed_recipe(random_path(models, seed), outside=models[seed % 2])
        merger.merge(recipe)
        run = merger.model(words()).logits
        merge_to_folder(recipe, tmp_path / str(seed))
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / str(seed))(words()).logits
        assert (run - exported).abs().max() <= 5e-6 * run.abs().max()
    alone = parse_recipe(f"merge_method: passthrough\nmodels: [{{model: {models[0]}}}]\n")
    merger.merge(alone)  # the norms of the model itself are as they were
    parent = AutoModelForCausalLM.from_pretrained(models[0])(words()).logits
    torch.testing.assert_close(merger.model(words()).logits, parent)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gpt_neox", "gemma3_text"])
def test_generating_with_a_cache_is_generating_without(architecture, dtype, family):
    extra = SLIDING if architecture in ("qwen2", "gemma3_text") else None
    models = family(architecture, extra=extra)
    merger = InPlaceMerger(Parents.open(models), base=models[0], dtype=dtype)
    for seed in range(4):
        merger.merge(routed_recipe([*random_path(models, seed), PathStep(models[0], 1), PathStep(models[0], 1)]))
        prompts = words(seed)
        mask = torch.ones_like(prompts)
        mask[0, :3] = 0
        settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 63}
        cached = merger.model.generate(prompts, attention_mask=mask, **settings)
        plain = merger.model.generate(prompts, attention_mask=mask, use_cache=False, **settings)
        if dtype == "float32":
            assert torch.equal(cached, plain)
        else:  # rounding differs with the shapes; tokens agree up to the first near tie
            assert torch.equal(cached[:, : prompts.shape[1] + 1], plain[:, : prompts.shape[1] + 1])


def test_no_step_takes_memory(family):
    models = family("llama")
    merger = InPlaceMerger(Parents.open(models), base=models[0])

    def size():
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in merger.model.parameters()}
        return sum(storages.values())

    whole = size()
    one_of_each = [PathStep(model, layer) for model in models for layer in range(DEPTH)]
    merger.merge(routed_recipe(one_of_each))
    both = size()
    merger.merge(routed_recipe(one_of_each * 3))
    assert size() == both
    assert both < 2 * whole
    assert len(merger.model.model.layers) == 6 * DEPTH


def test_merges_and_paths_take_turns(family):
    models = family("llama")
    parents = Parents.open(models)
    merger = InPlaceMerger(parents, base=models[0])
    listed = ", ".join(f"{{model: {m}, parameters: {{weight: 0.5}}}}" for m in models)
    average = parse_recipe(f"merge_method: linear\nmodels: [{listed}]\n")
    alone = parse_recipe(f"merge_method: passthrough\nmodels: [{{model: {models[0]}}}]\n")
    path = routed_recipe(random_path(models, 3), outside=models[0])
    identity = routed_recipe([PathStep(models[0], layer) for layer in range(DEPTH)])
    seen = {}
    for recipe in (average, path, alone, identity, average, path, identity):
        merger.merge(recipe)
        logits = merger.model(words()).logits
        assert torch.equal(seen.setdefault(recipe.hash, logits), logits)
    assert torch.equal(seen[alone.hash], seen[identity.hash])
    assert not torch.equal(seen[alone.hash], seen[path.hash])
    assert merger.model.config.num_hidden_layers == DEPTH


def test_embeddings_and_head_come_from_the_ends_or_from_outside(family):
    models = family("llama", tied=False)
    merger = InPlaceMerger(Parents.open(models), base=models[0])
    tensors = {m: AutoModelForCausalLM.from_pretrained(m).state_dict() for m in models}
    path = [PathStep(models[1], 0), PathStep(models[0], 1)]
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"

    def outside():
        state = merger.model.state_dict()
        return [
            next(i for i, m in enumerate(models) if torch.equal(state[n], tensors[m][n])) for n in (embedding, head)
        ]

    merger.merge(routed_recipe(path))
    assert outside() == [1, 0]
    merger.merge(routed_recipe(path, outside=models[1]))
    assert outside() == [1, 1]
    halves = [{"model": m, "parameters": {"weight": 0.5}} for m in models]
    merger.merge(routed_recipe(path, outside={"merge_method": "linear", "models": halves}))
    mean = sum(tensors[m][head] for m in models) / 2
    torch.testing.assert_close(merger.model.state_dict()[head], mean)


def test_a_layer_out_of_range_is_refused(family):
    models = family("llama")
    merger = InPlaceMerger(Parents.open(models), base=models[0])
    with pytest.raises(MergeError, match=f"no layer {DEPTH}; it has {DEPTH}"):
        merger.merge(routed_recipe([PathStep(models[1], 0), PathStep(models[1], DEPTH)], outside=models[0]))


@pytest.mark.parametrize("architecture", ["gemma2", "qwen2"])
def test_an_export_keeps_which_layers_are_of_which_kind(architecture, tmp_path):
    """Also where config.json leaves that to transformers."""
    window = {
        "sliding_window": 4,
        **({"use_sliding_window": True, "max_window_layers": 1} if architecture == "qwen2" else {}),
    }
    model = str(tiny_family(tmp_path, architecture, parents=1, layers=4, extra={"sliding_window": 4, **window})["a"])
    config = Path(model) / "config.json"
    types = AutoConfig.from_pretrained(model).layer_types
    assert len(set(types)) == 2
    fields = json.loads(config.read_text())
    del fields["layer_types"]
    config.write_text(json.dumps(fields))
    path = [PathStep(model, layer) for layer in (0, 1, 1, 2, 3, 2)]
    merge_to_folder(routed_recipe(path), tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").layer_types == [types[step.layer] for step in path]


def test_layers_that_know_their_number_are_refused(tmp_path):
    model = str(tiny_family(tmp_path, "gpt2", parents=1, extra={"scale_attn_by_inverse_layer_idx": True})["a"])
    (found,) = problems(routed_recipe([PathStep(model, 1)]), [model])
    assert "scale_attn_by_inverse_layer_idx" in found


def test_models_of_two_stacks_are_refused(tmp_path):
    from evomerge.merging.routed import Router
    from evomerge.testing.tiny_models import tiny_config, tiny_model

    with pytest.raises(MergeError, match=r"decoder\.block of 3"):
        Router(tiny_model(tiny_config("t5")))


def problems(recipe, models):
    return [str(problem) for problem in check_recipe(recipe, Parents.open(models))]


def test_layers_that_do_not_fit_are_told_with_both_shapes(family, tmp_path):
    (narrow, _), wide = family("llama"), str(tiny_family(tmp_path, "llama", parents=1, hidden=48)["a"])
    (found, *_) = problems(routed_recipe([PathStep(narrow, 0), PathStep(wide, 1)], outside=narrow), [narrow, wide])
    assert "32" in found
    assert "48" in found
    heads = str(tiny_family(tmp_path / "h", "llama", parents=1, extra={"num_attention_heads": 2})["a"])
    assert any(
        "num_attention_heads" in p
        for p in problems(routed_recipe([PathStep(narrow, 0), PathStep(heads, 1)]), [narrow, heads])
    )


def test_norms_of_another_eps_are_told(family, tmp_path):
    (model, _) = family("llama")
    other = str(tiny_family(tmp_path, "llama", parents=1, extra={"rms_norm_eps": 1e-3})["a"])
    (found,) = problems(routed_recipe([PathStep(model, 0), PathStep(other, 1)], outside=model), [model, other])
    assert "rms_norm_eps is 1e-06" in found
    assert "0.001" in found


def test_layers_out_of_range_and_bad_merges_outside_are_told(family):
    models = family("llama")
    (beyond,) = problems(routed_recipe([PathStep(models[0], DEPTH)]), models)
    assert f"which has {DEPTH} layers" in beyond
    outside = {"merge_method": "linear", "models": [{"model": models[1], "parameters": {"wieght": 1}}]}
    found = problems(routed_recipe([PathStep(models[0], 0)], outside=outside), models)
    assert any("outside.models[0].parameters.wieght" in p and "weight" in p for p in found)
    assert any("needs the parameter 'weight'" in p for p in found)
    unknown = {"merge_method": "liner", "models": [{"model": models[1]}]}
    (found,) = problems(routed_recipe([PathStep(models[0], 0)], outside=unknown), models)
    assert "outside.merge_method: unknown merge method 'liner'" in found


def test_scales_of_an_architecture_that_does_not_fold_are_refused_by_name(tmp_path):
    mamba = str(tiny_family(tmp_path, "mamba", parents=1)["a"])
    assert not problems(routed_recipe([PathStep(mamba, 1), PathStep(mamba, 0)]), [mamba])
    (found, *_) = problems(routed_recipe([PathStep(mamba, 1, 0.5), PathStep(mamba, 0)]), [mamba])
    assert "mamba" in found.lower()


STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260K" / "hf"


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs the checkpoint of stories260K beside the project")
def test_a_real_model_tells_the_same_story_routed_and_exported(tmp_path):
    model = str(STORIES)
    merger = InPlaceMerger(Parents.open([model]), base=model)

    def story(teller):
        return teller.generate(torch.tensor([[1]]), max_new_tokens=60, do_sample=False)

    depth = merger.model.config.num_hidden_layers
    merger.merge(routed_recipe([PathStep(model, layer) for layer in range(depth)]))
    assert torch.equal(story(merger.model), story(AutoModelForCausalLM.from_pretrained(model)))
    numbers = random.Random(0)
    recipe = routed_recipe(
        [PathStep(model, numbers.randrange(depth), numbers.choice((1, 0.8, -0.9))) for _ in range(8)]
    )
    merger.merge(recipe)
    exported = AutoModelForCausalLM.from_pretrained(merge_to_folder(recipe, tmp_path / "out"))
    assert torch.equal(story(merger.model), story(exported))
