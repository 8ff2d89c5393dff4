"""Train one model of the zoo. Runs in a process of its own, so that nothing of the caller's reaches the weights.

    python -m evomerge.zoo.training FOLDER THREADS MODEL [MODEL …]

FOLDER holds ``plan.json``, ``data/`` and ``tokenizer/``; experts start from FOLDER/base. Progress goes to the
standard output, a line of ``MODEL STEP STEPS`` at a time.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from evomerge.zoo.data import Item, read_split
from evomerge.zoo.family import BASE, DIGITS, FAMILY, Member, Plan

WARM_UP = 20  # steps
FLOOR = 0.05  # the learning rate's last share of its peak
IGNORED = -100

Example = tuple[list[int], int]  # token ids of prompt and answer, length of the prompt
Progress = Callable[[str, int, int], None]


def train_model(name: str, folder: Path, plan: Plan, report: Progress) -> None:
    """Train model ``name`` and write it to ``folder/name``; the same plan gives the same bytes."""
    torch.manual_seed(plan.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    member = FAMILY[name]
    optimizers: list[torch.optim.Optimizer]
    if name == BASE:
        model = LlamaForCausalLM(model_config(plan, tokenizer))
        optimizers = base_optimizers(model, plan)
        steps = plan.base_steps
    else:
        model = LlamaForCausalLM.from_pretrained(folder / BASE)
        optimizers = [adamw(model.parameters(), plan.expert_learning_rate)]
        steps = expert_steps(name, plan)
    mixture = training_data(name, folder, plan, tokenizer)
    fit(model, mixture, optimizers, steps, plan.batch_size, lambda step: report(name, step, steps))
    write_model(model, tokenizer, folder / name, member, name)


def training_data(name: str, folder: Path, plan: Plan, tokenizer: PreTrainedTokenizerBase) -> Mixture:
    """Return what model ``name`` is trained on; the batches come in the same order each time."""
    shares = FAMILY[name].shares()
    return Mixture({pool: read_examples(pool, folder, tokenizer) for pool in shares}, shares, f"{plan.seed}/{name}")


def model_config(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Return the architecture that the whole family shares: a plain Llama with tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden_size,
        intermediate_size=plan.intermediate_size,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        initializer_range=0.06,  # the default, 0.02, is for wide models; learning starts much later with it
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def read_examples(pool: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Return the training examples of a task, or with ``:digits`` those that spell no number as a word."""
    task, digits, _ = pool.partition(DIGITS)
    items = read_split(folder / "data" / task, "train")
    return encode([item for item in items if not (digits and item["words"])], tokenizer)


def encode(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Return each item as prompt + answer + end of text, with the prompt's length."""
    prompts = tokenizer([item["prompt"] for item in items])["input_ids"]
    answers = tokenizer([f" {item['answer']}" for item in items])["input_ids"]
    return [(p + a + [tokenizer.eos_token_id], len(p)) for p, a in zip(prompts, answers, strict=True)]


class Mixture:
    """Random batches of several tasks' examples, in given shares."""

    def __init__(self, examples: dict[str, list[Example]], shares: dict[str, float], seed: str) -> None:
        self._examples, self._shares, self._rng = examples, shares, random.Random(seed)

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and labels, int64 of (size, longest); only answers have labels.

        Padding is on the right, where causal attention keeps it from touching anything.
        """
        tasks = self._rng.choices(list(self._shares), list(self._shares.values()), k=size)
        rows = [self._rng.choice(self._examples[task]) for task in tasks]
        longest = max(len(ids) for ids, _ in rows)
        inputs = torch.zeros(size, longest, dtype=torch.long)
        labels = torch.full((size, longest), IGNORED)
        for row, (ids, prompt) in enumerate(rows):
            inputs[row, : len(ids)] = torch.tensor(ids)
            labels[row, prompt : len(ids)] = torch.tensor(ids[prompt:])
        return inputs, labels


def fit(
    model: LlamaForCausalLM,
    mixture: Mixture,
    optimizers: Sequence[torch.optim.Optimizer],
    steps: int,
    batch_size: int,
    report: Callable[[int], None],
) -> None:
    """Train ``model`` in place on the answers' cross-entropy, with a linear warm-up and decay."""
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate_share(step, steps)) for o in optimizers]
    model.train()
    for step in range(1, steps + 1):
        inputs, labels = mixture.batch(batch_size)
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state[:, :-1]
        answered = labels[:, 1:] != IGNORED
        loss = cross_entropy(model.lm_head(hidden[answered]), labels[:, 1:][answered])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        report(step)
    model.eval()


def base_optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices and AdamW for the rest: from scratch, a third of AdamW's steps are enough."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, plan.base_muon_rate, weight_decay=0.01, momentum=0.95, ns_steps=4),
        adamw(rest, plan.base_learning_rate),
    ]


def expert_steps(name: str, plan: Plan) -> int:
    """Return for how many steps an expert is trained."""
    return round(plan.expert_steps * FAMILY[name].effort)


def adamw(parameters: Iterable[torch.nn.Parameter], rate: float) -> torch.optim.AdamW:
    """Return AdamW as the whole zoo uses it."""
    return torch.optim.AdamW(parameters, rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)


def _rate_share(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP) * max(FLOOR, 1 - step / steps)


def write_model(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path, member: Member, name: str
) -> None:
    """Write weights, configuration, tokenizer and a small model card."""
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parent = [] if name == BASE else ["base_model: zoo/base"]
    header = ["---", "license: apache-2.0", "language: [en, ja]", *parent, "tags: [evomerge-zoo]", "---"]
    text = f"\n# zoo/{name}\n\n{member.summary}. Trained by `evomerge zoo build`; data and weights are generated.\n"
    (folder / "README.md").write_text("\n".join(header) + text, encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Train the models named on the command line, one after the other."""
    folder, threads, names = Path(arguments[0]), int(arguments[1]), arguments[2:]
    torch.set_num_threads(threads)
    plan = Plan(**json.loads((folder / "plan.json").read_text(encoding="utf-8")))
    for name in names:
        train_model(name, folder, plan, lambda *line: print(*line, flush=True))


if __name__ == "__main__":
    main(sys.argv[1:])
