"""Symmetries proven with numbers: permute everything at random, and the model computes the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evomerge.checkpoints.skeleton import quiet
from evomerge.errors import MergeError
from evomerge.merging.alignment import symmetries
from evomerge.merging.alignment.specification import Specification
from evomerge.merging.alignment.transport import Movements, Order, apply

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST = 100_000_000  # parameters of a model that is run for a check
SMALL = 1_000_000  # below this, the model itself is run
TOLERANCE = 1e-5  # relative to the largest output; models in float64, whose norms often compute in float32
_HEAD = 8


def verified(config: Mapping[str, Any]) -> Specification:
    """Return the model's symmetries, those taken out that do not stand the check.

    The check runs on a small copy of the model: fewer layers, narrower, otherwise the same. Its symmetries must be
    the model's own, tensor by tensor, for the tensors that both have.

    Raises:
        MergeError: the model cannot be run, no small copy of it either, or the check fails for all groups.
    """
    specification = symmetries.trace(config)
    small = _small_copy(config, specification)
    wrong = _wrong_groups(small)
    if not wrong:
        return specification
    names = ", ".join(sorted(wrong)[:3])
    raise MergeError(
        f"align: permuting {names} changes what {_name(config)} computes, so its neurons are not understood; "
        f"align it through Python, with a Specification of your own, and report this model"
    )


def _small_copy(config: Mapping[str, Any], specification: Specification) -> tuple[dict[str, Any], Specification]:
    """Return a config for the check, and its symmetries."""
    if _parameters(config) <= SMALL:
        return dict(config), specification
    tried = ""
    for candidate in (_shrunk(config, widths=True), _shrunk(config, widths=False)):
        try:
            if _parameters(candidate) > LARGEST:
                continue
            found = symmetries.trace(candidate)
        except Exception as error:  # a config that transformers refuses, in whatever way
            tried = f" ({error})"
            continue
        if _agree(specification, found):
            return candidate, found
    if _parameters(config) <= LARGEST:
        return dict(config), specification
    raise MergeError(
        f"align: no small copy of {_name(config)} could be made to check its symmetries on{tried}; "
        f"align it through Python, with a Specification of your own (docs/alignment.md)"
    )


def _shrunk(config: Mapping[str, Any], *, widths: bool) -> dict[str, Any]:
    """Return the config of a model with two layers, and narrow if ``widths``."""
    made = {**symmetries.config_of(config).to_dict(), "architectures": config.get("architectures")}
    parts = [made] + [part for name, part in made.items() if name.endswith("_config") and isinstance(part, dict)]
    for part in parts:
        _shrink(part, widths)
    return made


def _shrink(part: dict[str, Any], widths: bool) -> None:
    """Shrink in place. Names are those of transformers' common attributes and of their old spellings."""

    def put(value: int, *names: str) -> None:
        for name in names:
            if isinstance(part.get(name), int) and part[name] > value:
                part[name] = value

    layers = next((part[n] for n in ("num_hidden_layers", "n_layer", "num_layers") if isinstance(part.get(n), int)), 0)
    for name, value in part.items():
        if isinstance(value, list) and layers > 2 and len(value) == layers:
            part[name] = value[:2]
    put(2, "num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
    if not widths:
        return
    heads = next((part[n] for n in ("num_attention_heads", "n_head", "num_heads") if isinstance(part.get(n), int)), 0)
    groups = part.get("num_key_value_heads") or heads
    few = max(heads // max(groups, 1), 1) * 2
    put(2, "num_key_value_heads")
    put(few, "num_attention_heads", "n_head", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
    if "qk_rope_head_dim" not in part:
        put(_HEAD, "head_dim", "d_kv")
    if heads:
        put(few * _HEAD, "hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
    put(
        3 * _HEAD, "intermediate_size", "moe_intermediate_size", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"
    )
    put(5 * _HEAD, "shared_expert_intermediate_size")
    put(4, "num_experts", "num_local_experts", "n_routed_experts")
    put(2, "num_experts_per_tok")
    put(97, "vocab_size")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id"):
        if isinstance(part.get(name), int) and part[name] >= 97:
            part[name] = 1


def _agree(model: Specification, small: Specification) -> bool:
    """Whether the tensors of a small copy are made of the same groups as those of the model."""
    if not set(small.tensors) <= set(model.tensors):
        return False
    for name, axes in small.tensors.items():
        ours = model.tensors[name]
        if {g for g, _ in ours.at} != {g for g, _ in axes.at} or len(ours.dimensions) != len(axes.dimensions):
            return False
        for mine, other in zip(ours.dimensions, axes.dimensions, strict=True):
            if [[f for f in s if isinstance(f, str)] for s in mine] != [
                [f for f in s if isinstance(f, str)] for s in other
            ]:
                return False
    return all(model.groups[name].within == group.within for name, group in small.groups.items())


def _parameters(config: Mapping[str, Any]) -> int:
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in symmetries.build(symmetries.config_of(config)).parameters())


def _name(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or [config.get("model_type")])[0])


def _wrong_groups(small: tuple[dict[str, Any], Specification]) -> list[str]:
    """Return the groups whose permutation changes the outputs of the model with this config; [] as a rule."""
    config, specification = small
    generator = torch.Generator().manual_seed(0)
    model = random_model(config, generator)
    inputs = symmetries.inputs_for(model, generator)
    stored = symmetries.stored_tensors(model)
    with torch.no_grad():
        expected = symmetries.run(model, inputs)
        everything = random_movements(specification, np.random.default_rng(0))

        def holds(movements: Movements) -> bool:
            permuted = {n: apply(specification, n, movements, stored.__getitem__) for n in stored}
            return _same(expected, symmetries.run(load(model, permuted), inputs))

        if holds(everything):
            return []
        return [name for name, order in everything.items() if not holds({name: order})] or list(everything)


def random_model(config: Mapping[str, Any], generator: torch.Generator) -> PreTrainedModel:
    """Return a float64 model with random weights, norms and biases included, which start as ones and zeros."""
    model: Any = symmetries.build(symmetries.config_of(config))
    model = model.to(torch.float64)
    for tensor in {id(t): t for t in model.state_dict(keep_vars=True).values()}.values():
        if tensor.is_floating_point():
            noise = 0.3 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.data = (noise + 1.0).abs() if tensor.dim() == 1 else noise  # abs: some are variances
    random: PreTrainedModel = model
    return random


def random_movements(specification: Specification, generator: np.random.Generator) -> dict[str, Order]:
    """Return a random order for every group."""
    found: dict[str, Order] = {}
    for name, group in specification.groups.items():
        rows = 1 if group.within is None else specification.groups[group.within].size
        orders = np.stack([generator.permutation(group.size) for _ in range(rows)])
        found[name] = orders[0] if group.within is None else orders
    return found


def load(model: PreTrainedModel, stored: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """Return a model like ``model`` with the weights of these stored tensors."""
    state = {name: tensor.clone() for name, tensor in stored.items()}
    config = copy.deepcopy(model.config)  # some classes write into it
    with quiet():
        loaded: Any = type(model).from_pretrained(None, config=config, state_dict=state, dtype=model.dtype)
    made: PreTrainedModel = loaded.eval().requires_grad_(False)
    return made


def _same(expected: list[torch.Tensor], found: list[torch.Tensor]) -> bool:
    return all(
        float((one - other).abs().max()) <= TOLERANCE * max(float(one.abs().max()), 1.0)
        for one, other in zip(expected, found, strict=True)
        if one.numel()
    )
