"""How long a task's inputs are in tokens, from a sample of its items: what a batch of them takes depends on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DEFAULT_LIMIT = 256  # of lm-eval


class Lengths(NamedTuple):
    """Tokens of the longest input, and of an answer at most; 0 where none is generated."""

    prompt: int
    answer: int

    @property
    def total(self) -> int:
        """Tokens that a model is fed: the last of an answer is not."""
        return self.prompt + max(0, self.answer - 1)


def lengths_of(requests: Iterable[Instance], tokenizer: Any, max_length: int) -> Lengths:
    """Return the lengths of requests.

    Args:
        requests: of one task.
        tokenizer: of the model.
        max_length: where inputs are cut off.
    """
    longest = answer = 0
    for request in requests:
        if request.request_type == "generate_until":
            prompt, options = request.args
            answer = next((int(options[name]) for name in LIMITS if options.get(name)), DEFAULT_LIMIT)
            text = prompt
        else:
            text = "".join(str(part) for part in request.args)
        longest = max(longest, len(tokenizer(text, add_special_tokens=True)["input_ids"]))
    return Lengths(max(1, min(longest, max_length - answer)), answer)
