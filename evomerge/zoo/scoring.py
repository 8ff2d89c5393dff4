"""Score models of the zoo quickly: batched greedy answers, as lm-eval would judge them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from evomerge.zoo.data import read_split
from evomerge.zoo.family import EXPERTS, MULTIPLE_CHOICE, TASKS, UNIFORM

BATCH = 200
MAX_NEW_TOKENS = 4  # as in the tasks' YAML


Items = Sequence[Mapping[str, Any]]


def score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, Items]) -> dict[str, float]:
    """Return the share of right answers on each task's items, in [0, 1]."""
    scores = {}
    for task, items in tasks.items():
        answers = answer(model, tokenizer, [item["prompt"] for item in items], choose=task in MULTIPLE_CHOICE)
        right = sum(given == item["answer"] for given, item in zip(answers, items, strict=True))
        scores[task] = right / len(items)
    return scores


@torch.inference_mode()
def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, choose: bool = False
) -> list[str]:
    """Return the model's answer to each prompt.

    Args:
        choose: take the likeliest of the ten digits; else what is generated greedily, up to the end of text or line.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = tokenizer([prompts[index] for index in chosen], padding=True, return_tensors="pt")
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        texts = _choose(model, tokenizer, inputs) if choose else _generate(model, tokenizer, inputs)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text
    return answers


def _choose(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, torch.Tensor]) -> list[str]:
    tokens = [tokenizer.encode(f" {digit}")[0] for digit in range(10)]
    positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    logits = model(**inputs, position_ids=positions, logits_to_keep=1).logits[:, -1]
    return [str(digit) for digit in logits[:, tokens].argmax(dim=1).tolist()]


def _generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, torch.Tensor]
) -> list[str]:
    anything: Any = model  # the library's own annotation of `generate` refuses every model
    generated = anything.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    texts = tokenizer.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.partition("\n")[0].strip() for text in texts]


def uniform_average(models: Sequence[LlamaForCausalLM], into: LlamaForCausalLM) -> LlamaForCausalLM:
    """Put the plain average of ``models``' weights into ``into`` and return it."""
    states = [model.state_dict() for model in models]
    into.load_state_dict({name: torch.stack([s[name] for s in states]).mean(dim=0) for name in states[0]})
    return into


def main(arguments: Sequence[str]) -> None:
    """Score the models named on the command line on the test items: ``FOLDER MODEL [MODEL …]``."""
    folder, names = Path(arguments[0]), arguments[1:]
    tasks = {task: read_split(folder / "data" / task, "test") for task in TASKS}
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    for name in names:
        scores = score(_load(folder, name), tokenizer, tasks)
        (folder / f"scores-{name}.json").write_text(json.dumps(scores), encoding="utf-8")
        print(f"scores:{name}", 1, 1, flush=True)


def _load(folder: Path, name: str) -> LlamaForCausalLM:
    if name != UNIFORM:
        return LlamaForCausalLM.from_pretrained(folder / name)
    experts = [LlamaForCausalLM.from_pretrained(folder / expert) for expert in EXPERTS]
    return uniform_average(experts, into=LlamaForCausalLM.from_pretrained(folder / EXPERTS[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
