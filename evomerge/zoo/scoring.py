"""Score models of the zoo quickly: batched greedy answers, as lm-eval would judge them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from evomerge.zoo.data import read_split
from evomerge.zoo.family import EXPERTS, TASKS, UNIFORM

BATCH = 200


@torch.inference_mode()
def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Return the model's answer to each prompt: what it generates greedily, up to the end of text or line."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        inputs = tokenizer([prompts[index] for index in chosen], padding=True, padding_side="left", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        texts = tokenizer.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text.partition("\n")[0].strip()
    return answers


def score(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, Sequence[Mapping[str, str]]]
) -> dict[str, float]:
    """Return the share of right answers on each task's items, in [0, 1]."""
    scores = {}
    for task, items in tasks.items():
        answers = answer(model, tokenizer, [item["prompt"] for item in items])
        right = sum(given == item["answer"] for given, item in zip(answers, items, strict=True))
        scores[task] = right / len(items)
    return scores


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
