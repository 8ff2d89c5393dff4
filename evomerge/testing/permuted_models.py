"""Small random models of several architectures, and the same models with their neurons permuted.

They compute the same function with other weights: what an alignment must undo.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from evomerge.merging.alignment.symmetries import stored_tensors, trace
from evomerge.merging.alignment.transport import Order, apply
from evomerge.merging.alignment.verification import load, random_model, random_movements

DECODER = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": 64, "eos_token_id": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
VISION = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", DECODER),
    "llama-tied": ("LlamaForCausalLM", DECODER | {"tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", DECODER),
    "qwen2": ("Qwen2ForCausalLM", DECODER),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "bert": ("BertForMaskedLM", DECODER),
    "bert-classifier": ("BertForSequenceClassification", DECODER),
    "vit": ("ViTForImageClassification", VISION),
    "qwen3_moe": ("Qwen3MoeForCausalLM", DECODER | EXPERTS),
    "mixtral": ("MixtralForCausalLM", DECODER | {"num_local_experts": 4}),
    "phi3": ("Phi3ForCausalLM", DECODER),
    "falcon": ("FalconForCausalLM", {name: value for name, value in DECODER.items() if name != "head_dim"}),
    "bloom": ("BloomForCausalLM", {"n_layer": 2, "hidden_size": 32, "n_head": 4, "vocab_size": 64}),
    "t5": ("T5ForConditionalGeneration", {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}),
    "mamba": ("MambaForCausalLM", {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 64, "state_size": 4}),
}


def config_of(name: str) -> dict[str, Any]:
    """Return the ``config.json`` of one of ``MODELS``."""
    architecture, fields = MODELS[name]
    config = AutoConfig.for_model(name.partition("-")[0], **fields)
    config.architectures = [architecture]
    described: dict[str, Any] = config.to_dict()
    return described


def write_pair(folder: Path, name: str, seed: int = 0) -> dict[str, Order]:
    """Write a random model to ``folder/plain`` and the same with every group permuted to ``folder/permuted``.

    Returns:
        Group → the order in which the permuted model has its neurons.
    """
    config = config_of(name)
    model: Any = random_model(config, torch.Generator().manual_seed(seed))
    model = model.to(torch.float32)
    stored = {n: t.detach().clone() for n, t in stored_tensors(model).items()}
    specification = trace(config)
    orders = random_movements(specification, np.random.default_rng(seed))
    permuted = {n: apply(specification, n, orders, stored.__getitem__) for n in stored}
    model.save_pretrained(folder / "plain")
    load(model, permuted).save_pretrained(folder / "permuted")
    return orders
