"""Scales folded into weights: a plain model with more layers computes what the path with its scales does.

The reference walks the original model's layers in float64 and multiplies the hidden states before each; the folded
model is loaded by transformers from a config and renumbered, multiplied tensors. Norms' eps is set to 0, so that they
agree to rounding.
"""

import copy
import random
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.errors import ConfigError
from evomerge.merging.folding import Factor, check_foldable, factors
from evomerge.merging.folding_families import FAMILIES
from evomerge.recipes import layer_of, with_layer

HIDDEN, LAYERS = 32, 4
# Layers, with repeats and skips, and scales: the first is not 1, and the stream ends with another sign than it begins.
PATH = [2, 0, 0, 3, 1], [-0.6, 1.2, -0.8, 1.0, 1.4]

DECODER = {
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
ENCODER = {name: value for name, value in DECODER.items() if name not in ("num_key_value_heads", "head_dim")}
GPT = {"n_layer": LAYERS, "n_embd": HIDDEN, "n_head": 4, "n_positions": 64}
EXPERTS = DECODER | {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
BIASES = {"attention_bias": True, "mlp_bias": True}
SLIDING = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)}
FALCON = ENCODER | {"ffn_hidden_size": 48, "bias": True}
OPT = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "ffn_dim": 48} | {
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

MODELS = {  # architecture, and a variant of it after the blank
    "bloom": {"n_layer": LAYERS, "hidden_size": HIDDEN, "n_head": 4},
    "cohere": DECODER,
    "cohere qk_norm": DECODER | {"use_qk_norm": True, "attention_bias": True, "logit_scale": 0.3},
    "cohere2": DECODER | SLIDING,
    "falcon": FALCON,
    "falcon sequential": FALCON | {"parallel_attn": False, "alibi": True},
    "falcon two_norms": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma": DECODER,
    "gemma2": DECODER | SLIDING | {"final_logit_softcapping": 5.0},
    "gemma3_text": DECODER | SLIDING,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neox": ENCODER | {"use_parallel_residual": True},
    "gpt_neox sequential": ENCODER | {"use_parallel_residual": False},
    "gpt_oss": EXPERTS | SLIDING,
    "gptj": GPT | {"rotary_dim": 4},
    "granite": DECODER
    | {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 2.0},
    "granitemoe": EXPERTS | {"embedding_multiplier": 3.0, "residual_multiplier": 0.4},
    "llama": DECODER,
    "llama biases": DECODER | BIASES,
    "mistral": DECODER | {"sliding_window": 3},
    "mixtral": EXPERTS,
    "olmo2": DECODER | BIASES,
    "olmo3": DECODER | SLIDING | BIASES,
    "olmoe": EXPERTS | {"intermediate_size": 16},
    "opt": OPT,
    "phi": DECODER,
    "phi qk_norm": DECODER | {"num_key_value_heads": 4, "qk_layernorm": True},
    "phi3": DECODER,
    "qwen2": DECODER,
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 24},
    "qwen3": DECODER,
    "qwen3_moe": EXPERTS,
    "smollm3": DECODER | {"no_rope_layers": [1, 1, 0, 1]},
    "stablelm": DECODER,
    "stablelm parallel": DECODER | {"use_parallel_residual": True, "qk_layernorm": True},
    "starcoder2": DECODER,
}
VOCABULARY = {
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "_attn_implementation": "eager",
}


class InFloat64(TorchFunctionMode):
    """Lets models that norm or weigh in float32 do it in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def wide(value):
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            return args[0].double()
        return func(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})


@lru_cache(maxsize=1)
def original(variant, tied, std=1.0):
    """Return a model with random weights, norms and biases too, in float64, and its tensors as files hold them."""
    config = AutoConfig.for_model(variant.split()[0], **MODELS[variant], **VOCABULARY, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    embeddings = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if id(parameter) in embeddings:
            parameter.copy_(noise * std)
        elif parameter.dim() == 1:
            parameter.copy_(0.3 + 0.5 * noise)
        else:
            parameter.copy_(noise / HIDDEN**0.5)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load(folder), load_file(Path(folder) / "model.safetensors")


def load(folder):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float64,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def with_eps(model, eps):
    for module in model.modules():
        for field in {"eps", "variance_epsilon"} & vars(module).keys():
            setattr(module, field, eps)
    return model


def walked(model, path, scales):
    """Return the model with copies of its layers on a path, each after a multiplication."""
    model = copy.deepcopy(model)
    owner, name, layers = next(
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == LAYERS
    )
    steps = nn.ModuleList(copy.deepcopy(layers[index]) for index in path)
    for number, (step, scale) in enumerate(zip(steps, scales, strict=True)):
        for part in step.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
        step.register_forward_pre_hook(lambda _, args, scale=scale: (args[0] * scale, *args[1:]))
    setattr(owner, name, steps)
    for field, value in routed_config(model.config, path).items():
        setattr(model.config, field, value)
    return model


def routed_config(config, path):
    lists = {
        field: [value[index] for index in path]
        for field, value in vars(config).items()
        if isinstance(value, list) and len(value) == LAYERS
    }
    return {"num_hidden_layers": len(path), **lists}


def folded(model, stored, path, scales):
    """Return the plain model that transformers loads from folded weights."""
    tensors = {name: tensor for name, tensor in stored.items() if layer_of(name) is None}
    for number, index in enumerate(path):
        tensors |= {with_layer(name, number): tensor for name, tensor in stored.items() if layer_of(name) == index}
    config = copy.deepcopy(model.config)
    found = factors(config.to_dict(), scales, tensors, tied=config.tie_word_embeddings)
    for name, factor in found.items():
        tensors[name] = factor.apply(tensors[name])
    for field, value in routed_config(config, path).items():
        setattr(config, field, value)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, Path(folder) / "model.safetensors")
        return load(folder)


def difference(reference, plain, seed=0):
    """Return the largest difference of logits, relative to their size."""
    tokens = torch.randint(3, 64, (3, 12), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(), InFloat64():
        expected = reference(tokens, use_cache=False).logits
        found = plain(tokens, use_cache=False).logits
    assert expected.isfinite().all()
    return float((found - expected).abs().max() / expected.abs().max())


def left(variant, tied, path, scales, eps=0.0, std=1.0):
    """Return the relative difference that folding leaves."""
    model, stored = original(variant, tied, std)
    model = with_eps(model, eps)
    return difference(walked(model, path, scales), with_eps(folded(model, stored, path, scales), eps))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("variant", MODELS)
def test_a_plain_model_computes_what_the_path_does(variant, tied):
    assert left(variant, tied, *PATH) < 1e-12


def test_every_family_is_held_against_transformers():
    assert {variant.split()[0] for variant in MODELS} == set(FAMILIES)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", ["llama", "gemma2", "gpt2", "olmo2", "qwen2_moe"])
def test_random_paths(variant, seed):
    rng = random.Random(seed)
    path = [rng.randrange(LAYERS) for _ in range(rng.randrange(1, 8))]
    scales = [rng.choice((-1, 1)) * rng.choice((1.0, rng.uniform(0.3, 3))) for _ in path]
    assert left(variant, variant == "gemma2", path, scales) < 1e-11


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_first_scale_alone_is_exact_whatever_eps_is(tied):
    for scale in (0.01, -3.0):
        assert left("llama", tied, [0, 1, 1, 3], [scale, 1, 1, 1], eps=0.1) < 1e-12


def test_eps_leaves_little_where_the_stream_is_not_small():
    assert 1e-12 < left("llama", False, *PATH, eps=1e-6) < 1e-4


LLAMA = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{n}.{part}.weight"
        for n in range(3)
        for part in ("input_layernorm", "self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    ),
    "model.norm.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("model_type", ["llama", "mamba"])
def test_no_scales_no_factors(model_type):
    assert factors({"model_type": model_type}, [1, 1.0, 1], LLAMA, tied=True) == {}


@given(st.lists(st.floats(0.1, 10).flatmap(lambda x: st.sampled_from((1.0, x, -x))), min_size=3, max_size=3))
def test_what_stays_as_it_is_has_no_factor(scales):
    found = factors({"model_type": "llama"}, scales, LLAMA, tied=False)
    assert all(factor.scale != 1 for factor in found.values())
    assert not any("q_proj" in name or "up_proj" in name or "lm_head" in name for name in found)
    assert ("model.embed_tokens.weight" in found) == (scales[0] != 1)
    assert not any(layer_of(name) == 0 for name in found)


def test_a_tied_head_that_is_stored_stays_equal_to_the_embeddings():
    found = factors({"model_type": "llama"}, [2, 1, 1], LLAMA, tied=True)
    assert found == {name: Factor(2.0) for name in ("model.embed_tokens.weight", "lm_head.weight")} | {
        "model.norm.weight": Factor(0.5)
    }


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("llama", [name.removeprefix("model.") for name in LLAMA]),
        ("gpt2", ["wte.weight", "wpe.weight", "h.0.attn.bias", "h.0.ln_1.bias", "h.0.attn.c_proj.bias", "ln_f.bias"]),
        ("gpt_neox", [f"gpt_neox.{n}" for n in ("layers.0.attention.masked_bias", "final_layer_norm.weight")]),
        ("mixtral", ["model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.gate.weight", "model.norm.weight"]),
        ("qwen3_moe", ["model.layers.0.mlp.experts.gate_up_proj", "model.norm.weight"]),
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.norm.weight", "score.weight"]),
    ],
)
def test_names_that_other_versions_wrote(model_type, names):
    check_foldable({"model_type": model_type}, names)


def test_experts_in_one_tensor_are_divided_like_experts_one_by_one():
    names = ["block_sparse_moe.experts.3.w2.weight", "mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    names = ["model.norm.weight", *(f"model.layers.1.{name}" for name in names)]
    found = factors({"model_type": "mixtral"}, [1, -4], names, tied=False)
    assert found == dict.fromkeys(names[1:3], Factor(-0.25)) | {"model.norm.weight": Factor(-1.0)}


@pytest.mark.parametrize(
    ("config", "names", "words"),
    [
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, LLAMA, "MambaForCausalLM (model_type mamba)"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, LLAMA, "T5ForConditionalGeneration"),
        ({"model_type": "jamba"}, LLAMA, "model_type jamba"),
        ({}, LLAMA, "model_type None"),
        ({"model_type": "llama"}, [*LLAMA, "model.layers.1.mlp.new.weight"], "model.layers.1.mlp.new.weight does"),
        ({"model_type": "llama"}, [*LLAMA, "model.adapter.weight", "x.weight"], "model.adapter.weight and 1 more does"),
        ({"model_type": "llama"}, [*LLAMA, "vision.layers.0.mlp.up_proj.weight"], "vision.layers.0"),
        ({"model_type": "llama"}, LLAMA[:-2], "no weight of a norm after the last layer"),
        ({"model_type": "opt", "do_layer_norm_before": False}, [], "do_layer_norm_before: False"),
        ({"model_type": "bloom", "apply_residual_connection_post_layernorm": True}, [], "post_layernorm: True"),
    ],
)
def test_other_architectures_are_refused_by_name(config, names, words):
    with pytest.raises(ConfigError) as caught:
        check_foldable(config, names)
    assert words in str(caught.value)
    assert "scales: none" in str(caught.value)
    if config.get("model_type") not in FAMILIES:
        assert "llama, mistral" in str(caught.value)


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ([1, 1e-7, 1e-7], "steps 1 to 2 multiply to 1e-14"),
        ([-1e7, -1e7, 1e7], "steps 1 to 2 multiply to -1e"),
        ([1e-13, 1, 1], "steps 0 to 0 multiply to 1e-13"),
        ([1, float("nan"), 1], "multiply to nan"),
        ([1, 0, 1], "multiply to 0"),
    ],
)
def test_scales_too_far_from_1_are_refused(scales, words):
    with pytest.raises(ConfigError, match=words):
        factors({"model_type": "llama"}, scales, LLAMA, tied=True)


def test_there_is_a_scale_for_each_layer():
    with pytest.raises(ValueError, match="2 scales for 3 layers"):
        factors({"model_type": "llama"}, [2, 2], LLAMA, tied=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_factors_are_applied_in_float32_at_least(dtype):
    tensor = torch.tensor([1.0, -0.5, 3.0], dtype=dtype)
    before = tensor.clone()
    for factor in (Factor(1 / 3), Factor(-1 / 3, 1.0)):
        applied = factor.apply(tensor)
        assert applied.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        expected = factor.scale * (tensor.double() + factor.offset) - factor.offset
        torch.testing.assert_close(applied.double(), expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(tensor, before)
