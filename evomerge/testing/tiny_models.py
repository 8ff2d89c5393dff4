"""Tiny random models on disk, with a real tokenizer: a base and parents that differ from it by a little.

They are what the tests (and anyone who writes a merge method) merge instead of downloaded models.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from evomerge.errors import UnknownNameError

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
NAMES = ("a", "b", "c", "d", "e", "f")


def tiny_family(
    folder: Path | str,
    architecture: str = "llama",
    parents: int = 3,
    seed: int = 0,
    dtype: str = "float32",
    layers: int = 2,
    hidden: int = 32,
    vocab: int = 64,
    *,
    shard_size: str = "50GB",
    tied: bool | None = None,
    distance: float = 0.02,
    extra: dict[str, Any] | None = None,
    model_class: str | None = None,
) -> dict[str, Path]:
    """Write a base and some parents that were "fine-tuned" from it (base + normal noise).

    Args:
        folder: where the model folders go; created when missing.
        architecture: one of ``FAMILIES`` ("llama", "gpt2", "qwen3_moe", "bert", "vit", "t5", "llava", ...).
        parents: how many parents besides the base, at most 6.
        seed: the weights depend on it and on nothing else; no global random state is touched.
        dtype: what the weights are stored in ("float32", "float16", "bfloat16").
        layers: number of layers, of each stack if there are several.
        hidden: hidden size, a multiple of 8.
        vocab: tokens of the tokenizer and rows of the embedding, at least 64.
        shard_size: such as "20KB" to write several shards with an index.
        tied: whether embedding and head share weights; None leaves the architecture's default.
        distance: standard deviation of the noise that makes a parent of the base.
        extra: further fields of the model's config.
        model_class: of transformers, such as "BertForMaskedLM"; None for the architecture's usual one.

    Returns:
        Folders by name: "base", then "a", "b", "c", ... one for each parent.

    Raises:
        UnknownNameError: the architecture is none of ours.
    """
    folder = Path(folder)
    config = tiny_config(architecture, layers=layers, hidden=hidden, vocab=vocab, tied=tied, extra=extra)
    config.dtype = dtype
    tokenizer = None if architecture in WORDLESS else tiny_tokenizer(vocab)
    model = tiny_model(config, seed, model_class)
    start = {name: value.clone() for name, value in model.named_parameters()}
    buffers = {name: (model.get_buffer(name), model.get_buffer(name).clone()) for name in _persistent_buffers(model)}
    paths: dict[str, Path] = {}
    for index, name in enumerate(("base", *NAMES[:parents])):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * distance if index else 0.0
            parameter.data = (start[key] + noise).to(getattr(torch, dtype))
        for buffer, value in buffers.values():  # running means move with the weights, counts count the steps
            noise = torch.rand(value.shape, generator=generator) * distance if buffer.is_floating_point() else 1
            buffer.copy_(value + index * noise)
        paths[name] = folder / name
        model.save_pretrained(paths[name], max_shard_size=shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(paths[name])
    return paths


def _persistent_buffers(model: PreTrainedModel) -> list[str]:
    stored = model.state_dict()
    return [name for name, _ in model.named_buffers() if name in stored]


def tiny_config(
    architecture: str,
    *,
    layers: int = 2,
    hidden: int = 32,
    vocab: int = 64,
    tied: bool | None = None,
    extra: dict[str, Any] | None = None,
) -> PreTrainedConfig:
    """Return a small config of ``architecture``; ``extra`` overrides any field.

    Raises:
        UnknownNameError: the architecture is none of ours.
    """
    if architecture not in FAMILIES:
        raise UnknownNameError("tiny architecture", architecture, FAMILIES)
    fields = FAMILIES[architecture](layers, hidden)
    if architecture not in WORDLESS:
        words = {"vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        fields.get("text_config", fields).update(words)
    fields |= {} if tied is None else {"tie_word_embeddings": tied}
    return AutoConfig.for_model(architecture, **(fields | (extra or {})))


def tiny_model(config: PreTrainedConfig, seed: int = 0, model_class: str | None = None) -> PreTrainedModel:
    """Return a float32 model with random weights that depend on ``seed`` only.

    Args:
        model_class: its class in transformers; None for the usual one of the config's architecture.
    """
    built_by: Any = getattr(transformers, model_class or MODEL_CLASSES.get(config.model_type, "AutoModelForCausalLM"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(built_by, "from_config"):
            model = built_by.from_config(config, dtype=torch.float32)
        else:
            model = built_by(config).float()
    return model.eval().requires_grad_(False)


def tiny_tokenizer(vocab: int = 64) -> PreTrainedTokenizerFast:
    """Return a character tokenizer (lower case, digits, punctuation) of exactly ``vocab`` tokens.

    Raises:
        ValueError: fewer than 64 tokens were asked for.
    """
    characters = string.ascii_lowercase + string.digits + " .,?!:;+-*/=()'\"\n%$#&<>_"
    tokens = [*SPECIAL, *characters]
    if vocab < len(tokens):
        raise ValueError(f"a tiny tokenizer has at least {len(tokens)} tokens, asked for {vocab}")
    tokens += [f"<extra_{n}>" for n in range(vocab - len(tokens))]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=256,
        chat_template="{% for message in messages %}{{ message['content'] }}\n{% endfor %}",
    )


def _decoder(layers: int, hidden: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": hidden + hidden // 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": 256,
    }


def _gpt2(layers: int, hidden: int) -> dict[str, Any]:
    return {"n_layer": layers, "n_embd": hidden, "n_head": 4, "n_positions": 256}


def _experts(layers: int, hidden: int) -> dict[str, Any]:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": hidden // 2}
    return _decoder(layers, hidden) | experts


def _mixtral(layers: int, hidden: int) -> dict[str, Any]:
    return _decoder(layers, hidden) | {"num_local_experts": 4, "num_experts_per_tok": 2}


def _encoder(layers: int, hidden: int) -> dict[str, Any]:
    fields = _decoder(layers, hidden)
    return {name: value for name, value in fields.items() if name not in ("num_key_value_heads", "head_dim")}


def _distilbert(layers: int, hidden: int) -> dict[str, Any]:
    return {"n_layers": layers, "dim": hidden, "hidden_dim": 2 * hidden, "n_heads": 4, "max_position_embeddings": 256}


def _vision(layers: int, hidden: int) -> dict[str, Any]:
    fields = _encoder(layers, hidden) | {"image_size": 16, "patch_size": 8}
    return {name: value for name, value in fields.items() if name != "max_position_embeddings"}


def _image_classifier(layers: int, hidden: int) -> dict[str, Any]:
    return _vision(layers, hidden) | {"num_labels": 3}


def _text_and_vision(layers: int, hidden: int) -> dict[str, Any]:
    towers = {"text_config": _encoder(layers, hidden), "vision_config": _vision(layers + 1, hidden)}
    return towers | {"projection_dim": 16}


def _t5(layers: int, hidden: int) -> dict[str, Any]:
    fields = {"num_layers": layers, "num_decoder_layers": layers + 1, "d_model": hidden, "d_kv": 8, "d_ff": 2 * hidden}
    return fields | {"num_heads": 4, "relative_attention_num_buckets": 8, "decoder_start_token_id": 0}


def _encoder_decoder(layers: int, hidden: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"d_model": hidden, "decoder_start_token_id": 0, "max_position_embeddings": 256}
    for part, depth in (("encoder", layers), ("decoder", layers + 1)):
        fields |= {f"{part}_layers": depth, f"{part}_attention_heads": 4, f"{part}_ffn_dim": 2 * hidden}
    return fields


def _whisper(layers: int, hidden: int) -> dict[str, Any]:
    sizes = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32, "suppress_tokens": None}
    return _encoder_decoder(layers, hidden) | sizes | {"begin_suppress_tokens": None}


def _llava(layers: int, hidden: int) -> dict[str, Any]:
    text = _decoder(layers, hidden) | {"model_type": "llama"}
    vision = _vision(layers + 1, hidden) | {"model_type": "clip_vision_model"}
    return {"text_config": text, "vision_config": vision, "image_token_index": 60}


def _qwen2_vl(layers: int, hidden: int) -> dict[str, Any]:
    half = hidden // 8  # of a head; the rotation divides it into time, height and width
    text = _decoder(layers, hidden) | {
        "rope_parameters": {"rope_type": "default", "mrope_section": [half - 2, 1, 1], "rope_theta": 10000.0}
    }
    vision = {"depth": layers + 1, "embed_dim": hidden, "hidden_size": hidden, "num_heads": 4, "patch_size": 4}
    tokens = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    return {"text_config": text, "vision_config": vision | {"spatial_merge_size": 2, "mlp_ratio": 2}} | tokens


def _gemma3(layers: int, hidden: int) -> dict[str, Any]:
    text = _decoder(layers, hidden) | {"sliding_window": 8, "query_pre_attn_scalar": 8}
    vision = _vision(layers + 1, hidden) | {"model_type": "siglip_vision_model"}
    return {"text_config": text, "vision_config": vision, "mm_tokens_per_image": 4, "image_token_index": 60}


def _paligemma(layers: int, hidden: int) -> dict[str, Any]:
    text = _decoder(layers, hidden) | {"model_type": "gemma"}
    vision = _vision(layers + 1, hidden) | {"model_type": "siglip_vision_model", "projection_dim": hidden}
    return {"text_config": text, "vision_config": vision, "projection_dim": hidden, "image_token_index": 60}


def _mamba(layers: int, hidden: int) -> dict[str, Any]:
    return {"num_hidden_layers": layers, "hidden_size": hidden, "state_size": 4, "time_step_rank": 4}


def _jamba(layers: int, hidden: int) -> dict[str, Any]:
    """Layers of attention and of a state space, with and without experts."""
    hybrid = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 4, "mamba_dt_rank": 4}
    return _decoder(layers, hidden) | hybrid | experts | {"use_mamba_kernels": False}


def _wav2vec2(layers: int, hidden: int) -> dict[str, Any]:
    convolutions = {"conv_dim": [8, 8], "conv_stride": [2, 2], "conv_kernel": [3, 3], "num_conv_pos_embeddings": 4}
    return _encoder(layers, hidden) | convolutions | {"num_conv_pos_embedding_groups": 2}


def _swin(layers: int, hidden: int) -> dict[str, Any]:
    """Stages of several blocks, with buffers of integers."""
    return {"image_size": 16, "patch_size": 2, "embed_dim": hidden // 4, "depths": [1, layers], "num_heads": [2, 2]} | {
        "window_size": 2,
        "num_labels": 3,
    }


def _resnet(layers: int, hidden: int) -> dict[str, Any]:
    """Batch normalisation: buffers of running means, and integers that count."""
    return {"embedding_size": 8, "hidden_sizes": [8, hidden], "depths": [1, layers], "layer_type": "basic"} | {
        "num_labels": 3
    }


def _gpt_oss(layers: int, hidden: int) -> dict[str, Any]:
    """Experts stored as three-dimensional tensors, with biases, and attention sinks."""
    return _decoder(layers, hidden) | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}


# Decoders that every language model fitness must run; then all families.
ARCHITECTURES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "llama": _decoder,
    "mistral": _decoder,
    "qwen2": _decoder,
    "qwen3": _decoder,
    "gemma2": _decoder,
    "gpt2": _gpt2,
    "qwen3_moe": _experts,
}
FAMILIES: dict[str, Callable[[int, int], dict[str, Any]]] = ARCHITECTURES | {
    "phi3": _decoder,
    "phi": _decoder,
    "gemma": _decoder,
    "gemma3_text": _decoder,
    "olmo2": _decoder,
    "gpt_neox": _encoder,
    "mixtral": _mixtral,
    "gpt_oss": _gpt_oss,
    "mamba": _mamba,
    "jamba": _jamba,
    "bert": _encoder,
    "roberta": _encoder,
    "distilbert": _distilbert,
    "vit": _image_classifier,
    "swin": _swin,
    "resnet": _resnet,
    "clip": _text_and_vision,
    "siglip": _text_and_vision,
    "t5": _t5,
    "bart": _encoder_decoder,
    "whisper": _whisper,
    "wav2vec2": _wav2vec2,
    "llava": _llava,
    "qwen2_vl": _qwen2_vl,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
}
WORDLESS = ("vit", "swin", "resnet", "wav2vec2")  # models without a vocabulary
MODEL_CLASSES = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "vit": "ViTForImageClassification",
    "swin": "SwinForImageClassification",
    "resnet": "ResNetForImageClassification",
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
    "whisper": "WhisperForConditionalGeneration",
    "wav2vec2": "Wav2Vec2Model",
    "llava": "LlavaForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "paligemma": "PaliGemmaForConditionalGeneration",
}
