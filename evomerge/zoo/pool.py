"""The zoo's pool: checkpoints of its experts on their way, and LoRA adapters, for merges of many models.

It is built beside the zoo when it is asked for: `evomerge zoo build --pool`. The experts are trained again, with the
same numbers, and kept at a quarter, half and three quarters of the way; then adapters on the same data, kept half-way
and at the end. All adapters begin with the same A, as those do that are trained with one seed.

    python -m evomerge.zoo.pool FOLDER OUT THREADS EXPERT [EXPERT …]

trains the named experts' part from the zoo in FOLDER into OUT, in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from evomerge.errors import EvomergeError
from evomerge.zoo.family import BASE, EXPERTS, FAMILY, POOL, Plan
from evomerge.zoo.lora import adapt, write_adapter
from evomerge.zoo.processes import Progress, run_all
from evomerge.zoo.training import Progress as Report
from evomerge.zoo.training import adamw, expert_steps, fit, training_data, write_model

KEPT = (25, 50, 75)  # per cent of an expert's training; at 100 it is the zoo's own
KEPT_ADAPTERS = (50, 100)
ADAPTER_RATE = 5e-3  # peak learning rate


def build_pool(zoo: Path, *, progress: bool = True) -> Path:
    """Build the pool of the zoo in ``zoo`` unless it is there; return its folder.

    Raises:
        EvomergeError: the zoo is not built, or training failed.
    """
    pool = zoo / POOL
    if pool.is_dir():
        return pool
    if not (zoo / "plan.json").is_file():
        raise EvomergeError(f"the zoo is not built (no {zoo / 'plan.json'}); run `evomerge zoo build` first")
    partial = Path(tempfile.mkdtemp(prefix=f"{zoo.name}.partial-", dir=zoo.parent))
    try:
        with Progress(progress) as shown:
            halves = [EXPERTS[0::2], EXPERTS[1::2]]
            run_all([["evomerge.zoo.pool", str(zoo), str(partial), "1", *half] for half in halves], shown, threads=1)
        partial.chmod(0o755)  # mkdtemp makes private folders
        if not pool.is_dir():  # another process may have been faster; its pool has the same bytes
            os.rename(partial, pool)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return pool


def train_checkpoints(name: str, zoo: Path, out: Path, plan: Plan, report: Report) -> None:
    """Train an expert as the zoo's build does and write it to ``out/name-25``, … on its way."""
    torch.manual_seed(plan.seed)
    tokenizer = AutoTokenizer.from_pretrained(zoo / "tokenizer")
    model = LlamaForCausalLM.from_pretrained(zoo / BASE)
    steps = expert_steps(name, plan)
    marks = {_step(share, steps): share for share in KEPT}

    def at_step(step: int) -> None:
        if step in marks:
            kept = f"{name}-{marks[step]}"
            write_model(model, tokenizer, out / kept, FAMILY[name], f"{POOL}/{kept}")
        report(name, step, steps)

    data = training_data(name, zoo, plan, tokenizer)
    fit(model, data, [adamw(model.parameters(), plan.expert_learning_rate)], steps, plan.batch_size, at_step)


def train_adapter(name: str, zoo: Path, out: Path, plan: Plan, report: Report) -> None:
    """Train a LoRA adapter of the base on an expert's data and write it to ``out/name-lora-50`` and ``-100``."""
    torch.manual_seed(plan.seed)
    tokenizer = AutoTokenizer.from_pretrained(zoo / "tokenizer")
    model = LlamaForCausalLM.from_pretrained(zoo / BASE)
    adapted = adapt(model)
    steps = expert_steps(name, plan)
    marks = {_step(share, steps): share for share in KEPT_ADAPTERS}

    def at_step(step: int) -> None:
        if step in marks:
            write_adapter(adapted, out / f"{name}-lora-{marks[step]}", f"zoo/{BASE}")
        report(f"{name}-lora", step, steps)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    data = training_data(name, zoo, plan, tokenizer)
    fit(model, data, [adamw(trained, ADAPTER_RATE)], steps, plan.batch_size, at_step)


def _step(share: int, steps: int) -> int:
    return max(1, round(share / 100 * steps))


def main(arguments: Sequence[str]) -> None:
    """Train the part of the pool that belongs to the experts named on the command line."""
    zoo, out, threads, names = Path(arguments[0]), Path(arguments[1]), int(arguments[2]), arguments[3:]
    torch.set_num_threads(threads)
    plan = Plan(**json.loads((zoo / "plan.json").read_text(encoding="utf-8")))
    for name in names:
        for train in (train_checkpoints, train_adapter):
            train(name, zoo, out, plan, lambda *line: print(*line, flush=True))


if __name__ == "__main__":
    main(sys.argv[1:])
