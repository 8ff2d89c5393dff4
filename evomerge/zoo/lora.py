"""LoRA on the zoo's models, as much of it as their training needs; the adapters are written as PEFT writes them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

RANK = 8
ALPHA = 16
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class AdaptedLinear(torch.nn.Module):
    """A frozen linear layer W with a trained change: W x + (α / r) B A x (Hu et al. 2021, arXiv:2106.09685, eq. 3).

    A begins as PEFT's does, B at zero.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = torch.nn.Parameter(torch.empty(RANK, linear.in_features))
        self.up = torch.nn.Parameter(torch.zeros(linear.out_features, RANK))
        torch.nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the adapted layer's outputs."""
        change = torch.nn.functional.linear(torch.nn.functional.linear(inputs, self.down), self.up)
        return self.linear(inputs) + ALPHA / RANK * change


def adapt(model: LlamaForCausalLM) -> dict[str, AdaptedLinear]:
    """Freeze a model, put adapters on the linear layers inside its layers, and return them by module name."""
    model.requires_grad_(False)
    linear = {name: module for name, module in model.named_modules() if name.endswith(MODULES)}
    adapted = {name: AdaptedLinear(module) for name, module in linear.items()}
    for name, module in adapted.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, module)
    return adapted


def write_adapter(adapted: dict[str, AdaptedLinear], folder: Path, base: str) -> None:
    """Write an adapter's weights and config to ``folder``, which is made."""
    folder.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in adapted.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = module.down.detach()
        tensors[f"base_model.model.{name}.lora_B.weight"] = module.up.detach()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(MODULES),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
