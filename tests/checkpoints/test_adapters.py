"""LoRA adapters as parents: written by PEFT, read as models, equal to what PEFT merges or computes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.checkpoints import Checkpoint, open_checkpoint, tied_tensors
from evomerge.checkpoints.adapters import AdapterView
from evomerge.errors import CheckpointError
from evomerge.merging import InPlaceMerger, Parents, merge_to_folder
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of PEFT and about it

ALL_LINEAR = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]
# name → (architecture, what LoraConfig is given)
KINDS = {
    "plain": ("llama", {"target_modules": ALL_LINEAR}),
    "rslora": ("llama", {"target_modules": ALL_LINEAR, "use_rslora": True, "lora_alpha": 3}),
    "patterns": (
        "llama",
        {
            "target_modules": ALL_LINEAR,
            "rank_pattern": {"q_proj": 5, "layers.1.mlp.down_proj": 3},
            "alpha_pattern": {r"^model\.layers\.0\.self_attn\.(q|k)_proj": 11},
        },
    ),
    "dora": ("llama", {"target_modules": [*ALL_LINEAR, "embed_tokens"], "use_dora": True}),
    "embedding and head": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "modules to save": ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [7, 1, 5]}),
    "all biases": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    "biases of LoRA only": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"}),
    "bias of B": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "turned": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "turned, with DoRA": ("gpt2", {"target_modules": ["c_attn", "c_proj", "wte"], "use_dora": True}),
    "attention of a mixture": ("qwen3_moe", {"target_modules": ["q_proj", "gate"]}),
    "one layer": ("llama", {"target_modules": ALL_LINEAR, "layers_to_transform": [1]}),
}


def adapted(folder, architecture, options, *, dtype="float32", tied=False, seed=0):
    """Write a base and an adapter with random weights everywhere; return their folders and PEFT's model."""
    base = tiny_family(folder, architecture, parents=0, dtype=dtype, tied=tied, extra={"attention_bias": True})["base"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **options})
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            keep = parameter.data.float() if "lora_" not in name or "magnitude" in name else 0.0
            parameter.data = (keep + noise).to(parameter.dtype)
    model.save_pretrained(folder / "adapter")
    return base, folder / "adapter", model.eval()


def view_of(base, adapter):
    return open_checkpoint(f"{base}+{adapter}")


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_equal_those_that_peft_merges(tmp_path, kind):
    base, adapter, model = adapted(tmp_path, *KINDS[kind])
    view = view_of(base, adapter)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    assert view.tensors.keys() == expected.keys()
    before = load_file(base / "model.safetensors")
    changed = 0
    for name, tensor in expected.items():
        ours = view.tensor(name)
        assert (tuple(ours.shape), ours.dtype) == (view.tensors[name].shape, view.tensors[name].dtype)
        # float32: two orders of summation of r + 1 products and, with DoRA, of a norm
        torch.testing.assert_close(ours, tensor, rtol=2e-6, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
        changed += not torch.equal(ours, before[name])
    assert changed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once_and_near_peft(tmp_path, dtype):
    """PEFT rounds the product or the sum in steps; ours is the exact sum rounded once."""
    base, adapter, model = adapted(tmp_path, "llama", {"target_modules": ALL_LINEAR}, dtype=dtype)
    view = view_of(base, adapter)
    single = Checkpoint(base)
    merged = model.merge_and_unload().state_dict()
    stored = load_file(adapter / "adapter_model.safetensors")
    half = 2.0 ** (-8 if dtype == "bfloat16" else -11)  # of a unit in the last place, relative
    for name in view.tensors:
        ours, theirs = view.tensor(name).double(), merged[name].double()
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        delta = torch.zeros(())
        if f"{key}A.weight" in stored:
            delta = 2.0 * stored[f"{key}B.weight"].double() @ stored[f"{key}A.weight"].double()
        exact = single.tensor(name).double() + delta
        assert ((ours - exact).abs() <= half * exact.abs() + 1e-5).all(), name
        assert ((ours - theirs).abs() <= 2 * half * (exact.abs() + delta.abs()) + 1e-5).all(), name


@pytest.mark.parametrize("parts", [1, 1 << 30])
def test_parts_of_a_weight_change_nothing(tmp_path, monkeypatch, parts):
    base, adapter, _ = adapted(tmp_path, "gpt2", {"target_modules": ["c_attn", "wte"], "use_dora": True})
    whole = view_of(base, adapter)
    expected = {name: whole.tensor(name).clone() for name in whole.tensors}
    monkeypatch.setattr("evomerge.checkpoints.adapter_changes.PART_BYTES", parts)
    for name, tensor in expected.items():
        torch.testing.assert_close(whole.tensor(name), tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "untied"),
    [
        ({"target_modules": ["lm_head"]}, True),
        ({"target_modules": ["embed_tokens"]}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["q_proj"]}, False),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 2]}, False),
    ],
    ids=lambda value: json.dumps(value),
)
def test_a_merge_of_a_tied_base_computes_what_the_adapted_model_does(tmp_path, options, untied):
    """The unmerged model is the reference: PEFT's own merge changes both names of a tied tensor."""
    base, adapter, model = adapted(tmp_path, "llama", options, tied=True)
    reference = f"{base}+{adapter}"
    recipe = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": reference}]})
    out = merge_to_folder(recipe, tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.tie_word_embeddings != untied
    assert ("lm_head.weight" in Checkpoint(out).tensors) == untied
    resident = InPlaceMerger(Parents.open([reference]), base=reference)
    resident.merge(recipe)
    ids = torch.tensor([[1, 3, 2, 5, 8]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(resident.model(ids).logits, loaded(ids).logits)


def test_an_untrained_head_keeps_a_tensor_of_its_own(tmp_path):
    """Its product is zero, so that both tensors are equal; the config already says that they are not shared."""
    base, adapter, _ = adapted(tmp_path, "llama", {"target_modules": ["lm_head"]}, tied=True)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: t * (0 if "lora_B" in name else 1) for name, t in tensors.items()}, file)
    view = view_of(base, adapter)
    assert torch.equal(view.tensor("lm_head.weight"), view.tensor("model.embed_tokens.weight"))
    assert tied_tensors(view) == {}
    assert view.config["tie_word_embeddings"] is False


def test_adapters_merge_with_whole_models_and_nothing_is_written(tmp_path):
    base, adapter, model = adapted(tmp_path, "llama", {"target_modules": ALL_LINEAR})
    files = sorted(path for path in tmp_path.rglob("*"))
    reference = f"{base}+{adapter}"
    models = [{"model": reference, "parameters": {"weight": 0.5}}, {"model": str(base), "parameters": {"weight": 0.5}}]
    recipe = Recipe.model_validate({"merge_method": "linear", "models": models})
    parents = Parents.open(recipe.parents())
    assert sorted(path for path in tmp_path.rglob("*")) == files
    out = Checkpoint(merge_to_folder(recipe, tmp_path / "out", parents=parents))
    theirs = model.merge_and_unload().state_dict()
    single = Checkpoint(base)
    for name in out.tensors:
        expected = (theirs[name] + single.tensor(name)) / 2
        torch.testing.assert_close(out.tensor(name), expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_alone_takes_the_base_of_its_config(tmp_path, monkeypatch):
    base, adapter, _ = adapted(tmp_path, "llama", {"target_modules": ["q_proj"]})
    alone, both = open_checkpoint(str(adapter)), view_of(base, adapter)
    assert all(torch.equal(alone.tensor(name), both.tensor(name)) for name in both.tensors)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "./base"}))
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("adapter").folder == base
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "./gone"}))
    with pytest.raises(CheckpointError, match=r"an adapter of './gone' .*cannot be opened; name the base too, as BASE"):
        open_checkpoint("adapter")
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match=r"does not name its base; write BASE\+adapter"):
        open_checkpoint("adapter")


def test_old_checkpoints_without_the_models_prefix_are_matched(tmp_path):
    base, adapter, _ = adapted(tmp_path, "gpt2", {"target_modules": ["c_attn", "c_proj"]})
    new = view_of(base, adapter)
    expected = {name: new.tensor(name).clone() for name in new.tensors}
    tensors = load_file(base / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, base / "model.safetensors"
    )
    old = view_of(base, adapter)
    assert all(torch.equal(old.tensor(name.removeprefix("transformer.")), tensor) for name, tensor in expected.items())


def test_the_fingerprint_tells_base_weights_and_settings_apart(tmp_path):
    base, adapter, _ = adapted(tmp_path, "llama", {"target_modules": ["q_proj"]})
    first = view_of(base, adapter).fingerprint
    assert first == view_of(base, shutil.copytree(adapter, tmp_path / "copy")).fingerprint
    assert first != Checkpoint(base).fingerprint
    change(adapter, lambda config: config | {"lora_alpha": 9})
    second = view_of(base, adapter).fingerprint
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    assert len({first, second, view_of(base, adapter).fingerprint}) == 3


def change(adapter, edit):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(edit(json.loads(file.read_text()))))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return adapted(folder, "llama", {"target_modules": ["q_proj"]})[:2]


@pytest.fixture
def broken(sound, tmp_path):
    """A base, and a copy of an adapter of it, to be damaged."""
    return sound[0], shutil.copytree(sound[1], tmp_path / "broken")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of type IA3, not LORA"),
        ({"use_qalora": True}, "is grouped for quantised bases .*use_qalora"),
        ({"layer_replication": [[0, 1]]}, "repeats layers"),
        ({"alora_invocation_tokens": [1]}, "active for some tokens only"),
        ({"init_lora_weights": "pissa_niter_4"}, "began by changing its base .*pissa_niter_4"),
        ({"r": 7}, "has rank 4, adapter_config.json says 7"),
        ({"use_dora": True}, "lacks lora_magnitude_vector"),
    ],
)
def test_adapters_that_are_no_sum_of_weights_are_refused(broken, edit, message):
    base, adapter = broken
    change(adapter, lambda config: config | edit)
    with pytest.raises(CheckpointError, match=message):
        view_of(base, adapter)


@pytest.mark.parametrize("names", [["down_proj"], ["gate_up_proj", "down_proj"]])
def test_adapters_of_fused_experts_are_refused(tmp_path, names):
    options = {"target_modules": ["q_proj"], "target_parameters": [f"mlp.experts.{name}" for name in names]}
    base, adapter, _ = adapted(tmp_path, "qwen3_moe", options)
    with pytest.raises(CheckpointError, match=r"mlp\.experts.* is no layer's weight, such as fused experts"):
        view_of(base, adapter)


def rewrite(adapter, edit):
    file = adapter / "adapter_model.safetensors"
    save_file(edit(load_file(file)), file)


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: {k.replace("layers.1", "layers.9"): v for k, v in t.items()},
            r"layers\.9.*q_proj\.weight, which .*has not",
        ),
        (
            lambda t: {**t, "base_model.model.model.ghost": torch.ones(2)},
            r"'base_model\.model\.model\.ghost' belongs to",
        ),
        (
            lambda t: {**t, KEY: t[KEY][:, :-1].contiguous()},
            r"does not fit model\.layers\.0.*\(32, 32\) of .*\(4, 31\)",
        ),
        (lambda t: {k: v for k, v in t.items() if k != KEY}, r"layers\.0\.self_attn\.q_proj lacks lora_A"),
        (lambda t: {}, "an adapter without any tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(broken, edit, message):
    base, adapter = broken
    rewrite(adapter, edit)
    with pytest.raises(CheckpointError, match=message):
        view_of(base, adapter)


def test_nan_in_an_adapter_is_named_and_leaves_nothing(broken, tmp_path):
    base, adapter = broken
    rewrite(adapter, lambda tensors: {**tensors, KEY: tensors[KEY] * float("nan")})
    recipe = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]})
    with pytest.raises(
        CheckpointError, match=r"q_proj\.lora_A\.weight holds NaN or Inf; use another copy of this adap"
    ):
        merge_to_folder(recipe, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_pickled_adapters_are_refused_unless_allowed(broken):
    base, adapter = broken
    expected = view_of(base, adapter)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    tensors = {name: expected.tensor(name).clone() for name in expected.tensors}
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"only pickled weights \(adapter_model\.bin\).*--allow-pickle"):
        view_of(base, adapter)
    for allowed in (str(adapter), f"{base}+{adapter}"):
        view = open_checkpoint(f"{base}+{adapter}", allow_pickle=[allowed])
        assert isinstance(view, AdapterView)
        assert all(torch.equal(view.tensor(name), tensor) for name, tensor in tensors.items())
