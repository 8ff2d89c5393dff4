"""Greedy generation for a batch of prompts, in few steps outside the model's forward pass.

The tokens are those of `transformers`' ``generate(do_sample=False)`` with a dynamic cache; what is saved is
its work between forward passes (stop sequences decoded for every row and step, configuration copied for every
call). A test compares the two on several architectures. Two things differ from lm-eval's use of ``generate``:
a row ends at its own stop sequence, not when all rows of the batch have ended; and the names of special
tokens are not text (lm-eval finds the stop sequence "a" in a padding token called ``<pad>``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from evomerge.errors import FitnessError

# Fields of a generation config that do not change which token has the highest score.
NEUTRAL = frozenset(
    """bos_token_id eos_token_id pad_token_id do_sample temperature top_k top_p min_p typical_p max_length
    max_new_tokens use_cache transformers_version _from_model_config""".split()  # noqa: SIM905
)
# Values at which a field that could change scores does not.
OFF = {"repetition_penalty": 1.0, "num_beams": 1, "no_repeat_ngram_size": 0, "min_length": 0}


def can_decode_greedily(model: PreTrainedModel) -> bool:
    """Return whether `decode_greedily` gives this model's greedy answers.

    Not for encoder-decoder and recurrent models, nor for a generation config that changes scores
    (a repetition penalty, suppressed tokens, several beams): `transformers` generates for those.
    """
    config = getattr(model, "generation_config", None)
    fields = {} if config is None else config.to_diff_dict()
    active = {name for name, value in fields.items() if value not in (None, False) and value != OFF.get(name)}
    accepted = inspect.signature(model.forward).parameters
    plain = not model.config.is_encoder_decoder and not getattr(model, "_is_stateful", False)
    return plain and not active - NEUTRAL and {"position_ids", "past_key_values", "attention_mask"} <= set(accepted)


class StopCheck:
    """Whether a row of tokens holds a stop sequence; decodes only when its last token could complete one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._last_characters = {stop[-1] for stop in self._stops}
        self._candidates: dict[int, bool] = {}

    def __call__(self, tokens: list[int]) -> bool:
        if not self._can_end_a_stop(tokens[-1]):
            return False
        text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        return any(stop in text for stop in self._stops)

    def _can_end_a_stop(self, token: int) -> bool:
        if token not in self._candidates:
            # Twice, as many tokenizers drop the space before the first token; � is a part of a character.
            text = str(self._tokenizer.decode([token, token]))
            self._candidates[token] = "�" in text or not self._last_characters.isdisjoint(text)
        return self._candidates[token]


@torch.no_grad()
def decode_greedily(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    max_new_tokens: int,
    end_tokens: Collection[int],
    stopped: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Return the new tokens of each row, up to and with the one that ended it.

    Args:
        model: a causal model for which `can_decode_greedily` is true.
        input_ids: left-padded prompts, (rows, length), int64.
        attention_mask: 0 at the padding, (rows, length), int64.
        max_new_tokens: a row stops there at the latest.
        end_tokens: tokens that end a row.
        stopped: called with a row's new tokens after each of them; true ends the row.

    Raises:
        FitnessError: the model's scores hold NaN or infinity.
    """
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    fixed = _fixed_arguments(model)
    rows: list[list[int]] = [[] for _ in range(len(input_ids))]
    running = list(range(len(rows)))
    best_sum = torch.zeros((), device=input_ids.device)
    for _ in range(max_new_tokens):
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}
        best = model(**inputs, **fixed).logits[:, -1].float().max(dim=-1)
        best_sum = best_sum + best.values.sum()
        tokens = best.indices.tolist()
        for row in running:
            rows[row].append(tokens[row])
        running = [row for row in running if tokens[row] not in end_tokens and not stopped(rows[row])]
        if not running:
            break
        input_ids, positions = best.indices[:, None], positions[:, -1:] + 1
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(rows), 1)], dim=-1)
    check_finite(best_sum)
    return rows


def _fixed_arguments(model: PreTrainedModel) -> dict[str, Any]:
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    return {"use_cache": True, "past_key_values": cache, **last_only}


def check_finite(scores: torch.Tensor) -> None:
    """Raise unless every score is finite.

    Raises:
        FitnessError: NaN or infinity among the scores.
    """
    if not bool(torch.isfinite(scores).all()):
        raise FitnessError(
            "the model's scores hold NaN or infinity; look for NaN in the parents and for coefficients that "
            "overflow the model's dtype"
        )
