"""The resident model as lm-eval sees it: built once, and every prompt tokenised once."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evomerge.errors import FitnessError
from evomerge.fitness.generation import StopCheck, can_decode_greedily, check_finite, decode_greedily
from evomerge.fitness.isolation import quiet

Encoded = tuple[Any, list[int], list[int]]  # request as text (kept for lm-eval), context tokens, continuation tokens


@dataclass(frozen=True)
class Generation:
    """A generated answer, and whether the token limit cut it off before any stop sequence."""

    text: str
    truncated: bool


class FirstBatchDone(Exception):
    """Ends an evaluation that only tries how many sequences fit; its argument is how many there were."""


class ResidentLM(HFLM):
    """lm-eval's model class around a live model whose weights change between evaluations.

    Scores equal lm-eval's own (a test compares them item by item). Different are the cost outside the forward
    pass, that a batch depends on the requests alone, and that weights are never re-tied: a head that was
    merged on its own stays as it is.

    Args:
        model: the resident model; it is put into evaluation mode.
        tokenizer: a copy is used, as lm-eval may set its padding token.
        batch_size: sequences in a forward pass.
        max_length: longest sequence in tokens; None takes the model's limit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int | None = None,
    ) -> None:
        with quiet(), _without_tying(model):
            super().__init__(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),
                batch_size=batch_size,
                max_length=max_length,
                softmax_dtype=torch.float32,
            )
        self.only_first_batch = False
        self._max_length = self.max_length  # resolved once: the property reads the config at every call
        self._encodings: dict[tuple[str, bool | None], list[int]] = {}
        self._pairs: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        self._stop_checks: dict[tuple[str, ...], StopCheck] = {}
        self._greedy = self.backend == "causal" and can_decode_greedily(model)
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        self._end_tokens = {int(end) for end in [*ends, self.tokenizer.eos_token_id] if end is not None}

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Return the string's tokens, remembered for the next trial."""
        key = (string, add_special_tokens)
        if key not in self._encodings:
            self._encodings[key] = super().tok_encode(string, add_special_tokens)
        tokens = self._encodings[key]
        return tokens[-left_truncate_len:] if left_truncate_len else tokens

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt and of its answer, remembered for the next trial."""
        key = (context, continuation)
        if key not in self._pairs:
            self._pairs[key] = super()._encode_pair(context, continuation)
        return self._pairs[key]

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood, whether greedy decoding gives it) of each continuation.

        Requests with the same input (a question with one-token answers) share a forward pass.
        """
        shared: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            shared.setdefault((*context, *continuation[:-1]), []).append(index)
        order = sorted(shared, key=lambda tokens: (-len(tokens), tokens))
        answers: dict[int, tuple[float, bool]] = {}
        for batch in self._batches(order):
            members = [shared[tokens] for tokens in batch]
            answers |= self._score_batch(batch, members, requests)
        return [answers[index] for index in range(len(requests))]

    def use_batches_of(self, size: int) -> None:
        """Set the number of sequences in a forward pass."""
        self.batch_size_per_gpu = size

    def _batches(self, order: Sequence[Any]) -> Iterator[Any]:
        """Yield what is run together, the longest first.

        Raises:
            FirstBatchDone: that was all that was wanted.
        """
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]
            if self.only_first_batch:
                raise FirstBatchDone(min(len(order), self.batch_size))

    def _score_batch(
        self, batch: Sequence[tuple[int, ...]], members: Sequence[Sequence[int]], requests: Sequence[Encoded]
    ) -> dict[int, tuple[float, bool]]:
        inputs = [tokens[-self.max_length :] for tokens in batch]
        logits = self._model_call(self._pad(inputs, value=0, left=False))
        rows: list[int] = []
        columns: list[int] = []
        targets: list[int] = []
        lengths: list[int] = []
        indices: list[int] = []
        for row, (tokens, sharing) in enumerate(zip(inputs, members, strict=True)):
            for index in sharing:
                continuation = requests[index][2]
                if not 0 < len(continuation) <= len(tokens):
                    raise FitnessError(
                        f"an answer of {len(continuation)} tokens does not fit the limit of "
                        f"{self.max_length} tokens; raise `max_length` or drop the item"
                    )
                rows += [row] * len(continuation)
                columns += range(len(tokens) - len(continuation), len(tokens))
                targets += continuation
                lengths.append(len(continuation))
                indices.append(index)
        picked = logits[torch.tensor(rows, device=self.device), torch.tensor(columns, device=self.device)]
        log_probs = log_softmax(picked, dim=-1, dtype=self.softmax_dtype)
        target = torch.tensor(targets, device=self.device)
        chosen = log_probs.gather(-1, target[:, None]).squeeze(-1)
        sums, greedy = _over_answers(chosen, log_probs.argmax(-1) == target, lengths)
        if bool(sums.isnan().any()):
            check_finite(sums)
        return dict(zip(indices, zip(sums.tolist(), greedy.tolist(), strict=True), strict=True))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """See lm-eval; without progress bars."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_per_token(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the mean log-probability of each answer's tokens, for (prompt, answer) pairs.

        The prompt is read as it is when the model generates. lm-eval's `loglikelihood` is another number when a prompt
        ends in white space, as most chat templates do: it takes that for the beginning of the answer.
        """
        requests = [(pair, *self._encode_answer(*pair)) for pair in pairs]
        scores = self._loglikelihood_tokens(requests)
        return [score / len(answer) for (score, _), (_, _, answer) in zip(scores, requests, strict=True)]

    def _encode_answer(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Return the prompt's tokens, and those that the answer adds to them or changes (" " and "9" to " 9")."""
        before, whole = self.tok_encode(prompt), self.tok_encode(prompt + answer)
        same = next((n for n, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        return whole[:same] or [self.prefix_token_id], whole[same:]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """See lm-eval; without progress bars."""
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """See lm-eval; the texts of `generate`."""
        return [generation.text for generation in self.generate(requests)]

    def generate(self, requests: Sequence[Instance]) -> list[Generation]:
        """Return the answers to requests of (prompt, generation arguments), in their order.

        An answer ends before the first stop sequence or end token, or at ``max_gen_toks``.
        """
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        answers: dict[int, Generation] = {}
        for indices in alike.values():
            kwargs = dict(normalize_gen_kwargs(requests[indices[0]].args[1], self.max_gen_toks))
            prompts = {index: requests[index].args[0] for index in indices}
            order = sorted(indices, key=lambda index: (-len(self.tok_encode(prompts[index])), prompts[index]))
            for batch in self._batches(order):
                texts = self._generate_batch([prompts[index] for index in batch], kwargs)
                answers |= dict(zip(batch, texts, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _generate_batch(self, prompts: Sequence[str], kwargs: dict[str, Any]) -> list[Generation]:
        options = dict(kwargs)
        limit = int(options.pop("max_gen_toks"))
        end = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        stops = handle_stop_sequences(list(options.pop("until", [])), eos=end)
        inputs = self._prompt_tokens(prompts, limit)
        mask = self._pad([[1] * len(tokens) for tokens in inputs], value=0, left=True)
        input_ids = self._pad(inputs, value=self._padding_token(), left=True)
        if self._greedy and options in ({"do_sample": False}, {"do_sample": False, "temperature": 0.0}):
            check = self._stop_checks.setdefault(tuple(stops), StopCheck(self.tokenizer, stops))
            rows = decode_greedily(
                self.model,
                input_ids,
                mask,
                max_new_tokens=limit,
                end_tokens=self._end_tokens,
                stopped=check,
            )
        else:
            length = input_ids.shape[1]
            output = self._model_generate(input_ids, length + limit, stops, attention_mask=mask, **options)
            rows = output[:, length:].tolist()
        return [self._read(row, stops, limit) for row in rows]

    def _prompt_tokens(self, prompts: Sequence[str], limit: int) -> list[list[int]]:
        if self.backend != "causal":
            return [self.tok_encode(prompt, left_truncate_len=self.max_length) for prompt in prompts]
        room = self.max_length - limit
        if room <= 0:
            raise FitnessError(
                f"max_gen_toks ({limit}) leaves no room for a prompt within {self.max_length} tokens; set a "
                "smaller `gen_kwargs: {max_gen_toks: ...}` for the objective"
            )
        return [self.tok_encode(prompt, left_truncate_len=room) for prompt in prompts]

    def _read(self, tokens: list[int], stops: list[str], limit: int) -> Generation:
        first_end = next((n for n, token in enumerate(tokens) if token in self._end_tokens), None)
        ended = first_end is not None
        tokens = tokens if first_end is None else tokens[: first_end + 1]
        text = str(self.tok_decode(tokens))
        answer = str(postprocess_generated_text(text, stop=stops, think_end_token=None))
        return Generation(answer, truncated=len(tokens) >= limit and not ended and answer == text)

    def _padding_token(self) -> int:
        token = self.tokenizer.pad_token_id
        known = self.model.get_input_embeddings().num_embeddings
        return token if token is not None and token < known else 0

    def _pad(self, rows: Sequence[Sequence[int]], *, value: int, left: bool) -> torch.Tensor:
        width = max(len(row) for row in rows)
        padded = [
            [value] * (width - len(row)) + list(row) if left else list(row) + [value] * (width - len(row))
            for row in rows
        ]
        return torch.tensor(padded, dtype=torch.long, device=self.device)


@dataclass(frozen=True, eq=False)
class Resident:
    """A live model with its tokenizer; lm-eval's view of it is built at the first use and kept."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    max_length: int | None = None

    @cached_property
    def lm(self) -> ResidentLM:
        """lm-eval's view of the model."""
        return ResidentLM(self.model, self.tokenizer, batch_size=self.batch_size, max_length=self.max_length)


class ForwardClock:
    """Seconds spent inside a model's forward passes while the clock is running."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._start = 0.0
        self.seconds = 0.0

    def __enter__(self) -> ForwardClock:
        self._hooks = [
            self._model.register_forward_pre_hook(self._begin),
            self._model.register_forward_hook(self._end),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def _end(self, *_: Any) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._start


@contextmanager
def _without_tying(model: PreTrainedModel) -> Iterator[None]:
    """Make ``model.tie_weights()`` do nothing: lm-eval calls it, and would undo a head merged on its own."""
    model.tie_weights = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.tie_weights


def _over_answers(
    log_probs: torch.Tensor, same: torch.Tensor, lengths: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each answer's log-likelihood and whether all its tokens are the likeliest ones: two of shape (answers,).

    Args:
        log_probs: of the answers' tokens, one answer after the other, shape (tokens,).
        same: whether each token is the likeliest, shape (tokens,).
        lengths: tokens of each answer.
    """
    if len(set(lengths)) == 1:  # the usual case, without a tensor for each answer
        rows = (len(lengths), lengths[0])
        return log_probs.view(rows).sum(1), same.view(rows).all(1)
    sums = torch.stack([part.sum() for part in log_probs.split(list(lengths))])
    return sums, torch.stack([part.all() for part in same.split(list(lengths))])
