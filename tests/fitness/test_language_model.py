"""lm-eval's view of the resident model: answers, likelihoods, and what it must leave alone (T5, T11, T13)."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from evomerge.errors import FitnessError
from evomerge.fitness.generation import StopCheck, can_decode_greedily
from evomerge.fitness.isolation import quiet
from evomerge.fitness.language_model import ResidentLM
from evomerge.testing.tiny_models import ARCHITECTURES, tiny_config, tiny_model, tiny_tokenizer


def lively_model(architecture: str, seed: int = 0) -> PreTrainedModel:
    """Return a random model whose answers vary (weights larger than a fresh model's)."""
    model = tiny_model(tiny_config(architecture), seed)
    for parameter in model.parameters():
        parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    return model


def prompts(count: int, seed: int = 0) -> list[str]:
    """Return prompts of 1 to 20 characters."""
    source = random.Random(seed)
    return ["".join(source.choices("abc 123+=", k=source.randint(1, 20))) for _ in range(count)]


def generation_requests(texts: list[str], **kwargs: Any) -> list[Instance]:
    """Return one generation request for each text."""
    arguments = {"until": [";"], "max_gen_toks": 12, "do_sample": False} | kwargs
    return [Instance("generate_until", {}, (text, dict(arguments)), 0) for text in texts]


def harness(model: PreTrainedModel, batch_size: int = 4) -> HFLM:
    """Return lm-eval's own model class."""
    with quiet():
        return HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=batch_size, max_length=64)


def ours(model: PreTrainedModel, batch_size: int = 4) -> ResidentLM:
    """Return our model class with the same settings."""
    return ResidentLM(model, tiny_tokenizer(), batch_size=batch_size, max_length=64)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_greedy_answers_are_those_of_transformers_generate(architecture: str) -> None:
    model = lively_model(architecture)
    assert can_decode_greedily(model)
    texts = prompts(14)
    for until in ([], ["5", "1 ", "=="], ["4"]):
        requests = generation_requests(texts, until=until)
        expected = harness(model).generate_until(requests, disable_tqdm=True)
        assert ours(model).generate_until(requests) == expected
    assert len(set(expected)) > 4, "the answers must vary for the comparison to mean something"


def test_prompts_longer_than_the_limit_lose_their_beginning_as_in_lm_eval() -> None:
    model, texts = lively_model("llama"), ["abc 123 " * 12, "a"]
    requests = generation_requests(texts)
    assert ours(model).generate_until(requests) == harness(model).generate_until(requests, disable_tqdm=True)


def test_a_generation_config_that_changes_scores_is_left_to_transformers() -> None:
    model = lively_model("llama")
    model.generation_config.repetition_penalty = 1.5
    assert not can_decode_greedily(model)
    requests = generation_requests(prompts(6))
    assert ours(model).generate_until(requests) == harness(model).generate_until(requests, disable_tqdm=True)


def test_answers_cut_off_by_the_limit_are_marked_and_stopped_ones_are_not() -> None:
    model = lively_model("llama")
    texts = prompts(20)
    full = ours(model).generate(generation_requests(texts))
    assert sum(answer.truncated for answer in full) > 10
    stop = Counter("".join(answer.text for answer in full)).most_common(1)[0][0]
    stopped = ours(model).generate(generation_requests(texts, until=[stop]))
    assert {answer.truncated for answer in stopped} == {True, False}
    for before, after in zip(full, stopped, strict=True):
        assert after.text == before.text.split(stop)[0]
        assert after.truncated == (before.truncated and stop not in before.text)


@pytest.mark.parametrize("greedy", [True, False])
def test_an_end_token_ends_an_answer_without_marking_it(greedy: bool) -> None:
    model, texts = lively_model("llama"), prompts(20)
    model.generation_config.repetition_penalty = 1.0 if greedy else 1.0 + 1e-7
    lm = ours(model)
    assert lm._greedy == greedy
    full = lm.generate(generation_requests(texts))
    end = Counter("".join(answer.text for answer in full)).most_common(1)[0][0]
    model.generation_config.eos_token_id = [2, *tiny_tokenizer().encode(end)]
    ended = ours(model).generate(generation_requests(texts))
    assert {answer.truncated for answer in ended} == {True, False}
    for before, after in zip(full, ended, strict=True):
        head, found, _ = before.text.partition(end)
        assert (after.text, after.truncated) == (head + found, before.truncated and not found)


def test_stop_check_finds_stops_across_tokens_and_ignores_other_tokens() -> None:
    tokenizer = tiny_tokenizer()
    check = StopCheck(tokenizer, ["ab", ""])
    a, b = tokenizer.encode("ab", add_special_tokens=False)
    assert not check([a])
    assert not check([b])
    assert check([a, b])
    assert not check([a, a])


def test_batches_depend_on_the_requests_alone_and_not_on_their_order() -> None:
    model, texts = lively_model("llama"), prompts(11)
    lm = ours(model)
    first = lm.generate(generation_requests(texts))
    pairs = [Instance("loglikelihood", {}, (text, ending), 0) for text in texts for ending in ("a", "b", " c1")]
    likelihoods = lm.loglikelihood(pairs)
    assert lm.generate(generation_requests(texts)) == first
    assert lm.generate(generation_requests(texts[::-1]))[::-1] == first
    assert lm.loglikelihood(pairs[::-1])[::-1] == likelihoods
    assert ours(model).loglikelihood(pairs) == likelihoods


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_likelihoods_are_those_of_lm_eval(architecture: str) -> None:
    model = lively_model(architecture)
    pairs = [(text, ending) for text in [*prompts(9), ""] for ending in ("a", "b", " c1", "abc 123 " * 4)]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    expected = harness(model).loglikelihood(requests, disable_tqdm=True)
    for (value, greedy), (value_, greedy_) in zip(ours(model).loglikelihood(requests), expected, strict=True):
        assert value == pytest.approx(value_, rel=1e-6, abs=1e-5)
        assert greedy == greedy_


def test_a_head_merged_on_its_own_is_not_tied_again() -> None:
    model = tiny_model(tiny_config("llama", tied=True))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1.0, requires_grad=False)
    head = model.lm_head.weight
    ours(model).generate(generation_requests(["a"]))
    assert model.lm_head.weight is head
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    model.tie_weights()
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight), "tie_weights works again afterwards"


def test_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    lm = ResidentLM(lively_model("llama"), tokenizer, batch_size=2, max_length=64)
    assert lm.generate(generation_requests(["a", "abc"]))
    assert tokenizer.pad_token is None


def test_a_nan_in_the_scores_is_an_error_and_not_a_zero() -> None:
    model = lively_model("llama")
    model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(FitnessError, match="scores hold NaN or infinity; look for NaN in the parents"):
        ours(model).generate(generation_requests(["a"]))
    with pytest.raises(FitnessError, match="scores hold NaN or infinity"):
        ours(model).loglikelihood([Instance("loglikelihood", {}, ("a", "b"), 0)])


def test_no_room_for_a_prompt_is_said() -> None:
    with pytest.raises(FitnessError, match=r"max_gen_toks \(64\) leaves no room for a prompt within 64 tokens"):
        ours(lively_model("llama")).generate(generation_requests(["a"], max_gen_toks=64))


def test_an_answer_longer_than_the_limit_is_said() -> None:
    request = Instance("loglikelihood", {}, ("a", "b" * 70), 0)
    with pytest.raises(FitnessError, match="an answer of 70 tokens does not fit the limit of 64 tokens"):
        ours(lively_model("llama")).loglikelihood([request])
