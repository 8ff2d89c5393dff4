"""The exported folder: written whole or not at all, and loaded again with transformers alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, ExportError
from evomerge.export.card import render_card
from evomerge.export.card_data import CardData
from evomerge.merging import merge_to_folder
from evomerge.merging.to_folder import RECIPE
from evomerge.recipes import Recipe, write_recipes

if TYPE_CHECKING:
    from evomerge.merging import Parents


def write_model(
    recipe: Recipe,
    out: Path,
    *,
    card: CardData | None = None,
    parents: Parents | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Merge ``recipe`` into the folder ``out``, with a model card, and return ``out``.

    Everything is written beside ``out`` and renamed at the end: ``out`` is complete or does not exist. What a kill or
    a full disk interrupts goes on when it is called again (see `merge_to_folder`).

    Args:
        recipe: what to merge.
        out: a folder that does not exist or is empty.
        card: what README.md says; None writes none.
        parents: the recipe's parents, where they are open already.
        max_shard_size: of each safetensors file, such as ``5GB``.
        overwrite: replace ``out`` if it is an earlier export (it holds a recipe.yaml).
        report: told the bytes written and the bytes in all, after each tensor.

    Raises:
        ExportError: ``out`` is in use or cannot be written.
        MergeError, CheckpointError: the recipe cannot be carried out.
    """
    _check_target(out, overwrite)
    companions = {} if card is None else {"README.md": render_card(card)}
    if card is not None and card.stages:
        companions[RECIPE] = write_recipes(card.stages)
    try:
        merge_to_folder(
            recipe,
            out,
            max_shard_size=max_shard_size,
            parents=parents,
            companions=companions,
            replace=overwrite,
            report=report,
        )
    except OSError as error:
        hint = "free some space, and the same command goes on from there; or choose another folder"
        raise ExportError(f"cannot write {out}: {error}; {hint}") from error
    return out


def read_plain(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an exported folder of plain tensors, by name.

    Raises:
        ExportError: they cannot be read, or are not finite.
    """
    try:
        checkpoint = Checkpoint(folder)
        if broken := checkpoint.check_finite():
            raise ExportError(f"{folder}: {', '.join(broken[:5])} are not finite; check the parents")
        return {name: checkpoint.tensor(name).clone() for name in sorted(checkpoint.tensors)}
    except CheckpointError as error:
        raise ExportError(f"{folder} cannot be read: {error}; export it again") from error


def verify_loads(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load ``folder`` as anybody would, generate some tokens, and return the model and its tokenizer.

    Raises:
        ExportError: it does not load, a weight is missing or left over, or its logits are not finite.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype="auto", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ExportError(f"transformers cannot load {folder}: {error}; export it again") from error
    model, info = loaded  # the stubs do not know output_loading_info
    _check_loading(folder, info)
    _smoke_test(folder, model, tokenizer)
    return model, tokenizer


def _check_loading(folder: Path, info: dict[str, Any]) -> None:
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        names = sorted(str(name) for name in info.get(kind) or ())
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            problems.append(f"{kind.replace('_', ' ')}: {', '.join(names[:5])}{more}")
    if problems:
        advice = "the recipe's parents do not fit their config.json; check the parent that the config comes from"
        raise ExportError(f"{folder} loads, but not whole: {'; '.join(problems)}; {advice}")


@torch.no_grad()
def _smoke_test(folder: Path, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    model.eval()
    inputs = tokenizer("1 + 1 =", return_tensors="pt", return_token_type_ids=False)
    if not inputs["input_ids"].shape[-1]:
        inputs = {"input_ids": torch.zeros((1, 1), dtype=torch.long)}
    if not bool(torch.isfinite(model(**inputs).logits).all()):
        raise ExportError(
            f"{folder} loads, but its logits are not finite: a weight is NaN or infinite; check the parents"
        )
    try:
        model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=tokenizer.pad_token_id or 0)
    except (ValueError, RuntimeError, IndexError) as error:
        raise ExportError(f"{folder} loads, but cannot generate: {error}; check its generation_config.json") from error


def _check_target(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file: choose another folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ExportError(f"{out} exists and is not empty: choose another folder or remove it")
    if not (out / "recipe.yaml").is_file():
        raise ExportError(
            f"{out} is not an exported model (no recipe.yaml), so it is not replaced: choose another folder"
        )
