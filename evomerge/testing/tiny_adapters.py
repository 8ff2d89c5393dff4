"""LoRA adapters of tiny models, written as PEFT writes them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from evomerge.checkpoints import Checkpoint

MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def tiny_adapter(folder: Path, base: Path, seed: int, *, rank: int = 4, modules: tuple[str, ...] = MODULES) -> Path:
    """Write a random adapter with scale α / r = 2 to ``folder`` and return it.

    Its numbers are multiples of 1/64, so that short sums of them are exact.

    Args:
        folder: must not exist.
        base: folder of the model that it is for.
        seed: of the numbers.
        rank: of every matrix.
        modules: ends of the names of the layers that it changes.
    """
    tensors: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for name, info in Checkpoint(base).tensors.items():
        module = name.removesuffix(".weight")
        if module.endswith(modules):
            rows, columns = info.shape
            for part, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                numbers = torch.randint(-64, 65, shape, generator=generator) / 64
                tensors[f"base_model.model.{module}.lora_{part}.weight"] = numbers
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder
