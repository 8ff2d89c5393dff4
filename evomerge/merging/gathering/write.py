"""From open models to a folder of statistics."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints import Checkpoint, CheckpointWriter, TensorSpec
from evomerge.errors import ExportError
from evomerge.merging.gathering.examples import Example, digest
from evomerge.merging.gathering.gather import Gathered, Labels, gather
from evomerge.merging.statistics import FORMAT, INDEX

Report = Callable[[str, int], None]


@dataclass(frozen=True)
class Calibration:
    """What to gather, and of what.

    Args:
        checkpoint: the model as a checkpoint.
        build: makes the model, once its turn has come.
        examples: what it is run on.
    """

    checkpoint: Checkpoint
    build: Callable[[], Any]
    examples: Sequence[Example]


def write_statistics(
    out: Path,
    models: Mapping[str, Calibration],
    kinds: Sequence[str],
    *,
    seed: int,
    labels: Labels,
    sample_rows: int,
    made: Mapping[str, Any],
    report: Report = lambda reference, done: None,
) -> dict[str, Gathered]:
    """Gather statistics of models, one after the other, into the folder ``out``; it appears complete or not at all.

    Args:
        out: a folder that does not exist, or is empty.
        models: reference → what to gather of it.
        kinds: see `evomerge.merging.gathering.gather`.
        seed: the same for all models.
        labels: of the Fisher.
        sample_rows: see `gather`.
        made: what to note of data and settings.
        report: called with a reference and its number of finished examples.

    Returns:
        What was gathered of each model, without the tensors.

    Raises:
        ExportError: ``out`` is not empty, cannot be made, or the disk is too small.
        MergeError: a model cannot be run on its examples.
    """
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not empty; name another folder or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        entries, found = [], {}
        for number, (reference, model) in enumerate(models.items()):
            gathered = gather(
                model.build(),
                model.checkpoint,
                model.examples,
                kinds,
                seed=seed,
                labels=labels,
                sample_rows=sample_rows,
                report=partial(report, reference),
            )
            folder = f"model-{number:02d}"
            entries.append(_write_model(unfinished / folder, reference, model, gathered, kinds))
            gathered.sums = {}
            found[reference] = gathered
        index = {"format": FORMAT, "made": dict(made), "models": entries}
        (unfinished / INDEX).write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.chmod(0o755)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return found


def _write_model(
    folder: Path, reference: str, model: Calibration, gathered: Gathered, kinds: Sequence[str]
) -> dict[str, Any]:
    """Write one model's tensors, equal ones once, and return its entry of the index."""
    stored: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    seen: dict[str, str] = {}
    whole = sha256()
    for name, tensor in gathered.sums.items():
        key = _content(tensor)
        whole.update(f"{name} {key}\n".encode())
        if key in seen:
            shared[name] = seen[key]
        else:
            seen[key] = name
            stored[name] = tensor
    specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in stored.items()]
    size = max(1, sum(spec.num_bytes for spec in specs))
    with CheckpointWriter(folder, specs, size) as writer:
        for name, tensor in stored.items():
            writer.write(name, tensor)
    return {
        "reference": reference,
        "fingerprint": model.checkpoint.fingerprint,
        "folder": folder.name,
        "kinds": list(kinds),
        "numbers": gathered.numbers,
        "tokens": gathered.tokens,
        "examples": len(model.examples),
        "data": digest(model.examples),
        "digest": whole.hexdigest()[:16],
        "axes": gathered.axes,
        "shared": shared,
        "unseen": list(gathered.unseen),
    }


def _content(tensor: torch.Tensor) -> str:
    data: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tuple(tensor.shape)} {sha256(data).hexdigest()}"
