"""Statistics of models on calibration data, as `evomerge statistics` wrote them: read, matched to models, checked.

A folder holds ``statistics.json`` and a folder of safetensors for each model, whose tensors are called
``KIND/TENSOR`` after the checkpoint's tensors.

| kind | of a tensor | what it is |
| --- | --- | --- |
| fisher | the tensor's shape, float32 | diagonal of the Fisher information |
| gram | (inputs, inputs), float32 | XᵀX / tokens of the weight's inputs X |
| gradient | (outputs, outputs), float32 | GᵀG / tokens of the gradients G of log p at the weight's outputs |
| scale | (1, inputs) or (inputs, 1) or a vector's, float32 | mean absolute input of each channel |
| sample | (rows, inputs), float16 | the weight's inputs at some tokens, the same for all models |
| axis | a number | which axis of the weight runs over its inputs: 1 as in nn.Linear, 0 as in GPT-2's Conv1D |

Numbers of a whole model: ``loss`` (mean cross-entropy of a token), ``fisher_size`` (root mean square of its Fisher).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints import Checkpoint, CheckpointView, TensorInfo
from evomerge.checkpoints.headers import read_headers
from evomerge.checkpoints.mapping import MappedFiles
from evomerge.errors import CheckpointError, EvomergeError, Problem
from evomerge.recipes import Recipe

INDEX = "statistics.json"
FORMAT = 1
TENSORS = ("fisher", "gram", "gradient", "scale", "sample")  # kinds that belong to a tensor of the checkpoint
NUMBERS = {"loss": "loss", "fisher_size": "fisher"}  # number of a model → the kind it is gathered with
AXIS = "axis"


@dataclass(frozen=True)
class ModelStatistics:
    """What was gathered of one model.

    Args:
        reference: how the command called the model.
        fingerprint: of the checkpoint it was gathered from.
        kinds: what was gathered.
        numbers: of the model as a whole.
        axes: tensor → which of its axes runs over its inputs.
        shared: "KIND/TENSOR" → the name under which the same statistic is stored.
        data: digest of the tokens that it was gathered on.
        tensors: "KIND/TENSOR" → where it is stored.
    """

    reference: str
    fingerprint: str
    kinds: tuple[str, ...]
    numbers: Mapping[str, float]
    axes: Mapping[str, int]
    shared: Mapping[str, str]
    data: str
    tensors: Mapping[str, TensorInfo] = field(repr=False)


class Statistics:
    """An opened folder of statistics; tensors are views of memory-mapped files.

    Args:
        folder: where it lies.
        models: by reference.

        fingerprint: 16 hexadecimal digits that change with what is stored.

    Attributes:
        made: what the command noted of its data and settings.
    """

    def __init__(
        self, folder: Path, models: Mapping[str, ModelStatistics], made: Mapping[str, Any], fingerprint: str
    ) -> None:
        self.folder, self.models, self.made, self.fingerprint = folder, dict(models), dict(made), fingerprint
        self._files = MappedFiles()

    @classmethod
    def open(cls, folder: Path | str) -> Statistics:
        """Open a folder that `evomerge statistics` made; opened once, as long as it does not change.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        index = Path(folder).expanduser() / INDEX
        try:
            return _opened(index.parent, index.stat().st_mtime_ns)
        except OSError as error:
            raise CheckpointError(
                f"{folder}: no folder of statistics ({INDEX}: {error.strerror}); make one with `evomerge statistics`"
            ) from error

    def tensor(self, reference: str, kind: str, name: str) -> torch.Tensor | None:
        """Return a statistic of one tensor of a model, or a number as a tensor of no axes; None if it has none.

        Args:
            reference: as the command called the model; see `matched` for other spellings.
            kind: a kind of tensor, "axis", or the name of a number.
            name: the tensor's name in the checkpoint.
        """
        model = self.models.get(reference)
        if model is None:
            return None
        if kind in NUMBERS:
            return torch.tensor(model.numbers[kind], dtype=torch.float64) if kind in model.numbers else None
        if kind == AXIS:
            return torch.tensor(model.axes[name]) if name in model.axes else None
        key = f"{kind}/{name}"
        info = model.tensors.get(model.shared.get(key, key))
        return None if info is None else self._files.tensor(info)

    def number(self, reference: str, name: str) -> float | None:
        """Return a number of a model, such as its loss; None if it was not gathered."""
        model = self.models.get(reference)
        return None if model is None else model.numbers.get(name)

    def of(self, reference: str, name: str, kinds: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return kind → statistic for those of ``kinds`` that there are of one tensor of a model."""
        found = {kind: self.tensor(reference, kind, name) for kind in kinds}
        return {kind: tensor for kind, tensor in found.items() if tensor is not None}

    def release(self) -> None:
        """Forget what is mapped into memory; tensors handed out stay valid."""
        self._files.release()

    def matched(self, checkpoints: Mapping[str, Checkpoint]) -> Statistics:
        """Return the same statistics under the references of ``checkpoints``, found by their weights.

        A model keeps its entry when it is called by another name or lies elsewhere. One whose weights are not those
        that were gathered has none.
        """
        found = {reference: self._entry(reference, checkpoint) for reference, checkpoint in checkpoints.items()}
        known = {reference: entry for reference, entry in found.items() if entry is not None}
        seen = Statistics(self.folder, known, self.made, self.fingerprint)
        seen._files = self._files
        return seen

    def _entry(self, reference: str, checkpoint: Checkpoint) -> ModelStatistics | None:
        for model in self.models.values():
            if model.fingerprint == checkpoint.fingerprint:
                return model
        while isinstance(checkpoint, CheckpointView):  # numbers of a model stay true when its neurons are permuted
            checkpoint = checkpoint.source
            known = self.models.get(reference)
            if known is not None and known.fingerprint == checkpoint.fingerprint:
                return known
        return None

    def problems(self, checkpoints: Mapping[str, Checkpoint], kinds: Sequence[str]) -> list[Problem]:
        """Return why a merge of these models cannot use the statistics.

        Args:
            checkpoints: reference → model, for every model whose statistics are needed.
            kinds: of statistics, numbers among them.
        """
        needed = tuple(dict.fromkeys(NUMBERS.get(kind, kind) for kind in kinds if kind != AXIS))
        hint = f"make them again, all in one folder: {command(list(checkpoints), needed)}"
        matched = self.matched(checkpoints).models
        found: list[Problem] = []
        for reference, checkpoint in checkpoints.items():
            if reference in matched:
                lacking = [kind for kind in needed if kind not in matched[reference].kinds]
                what = f"{self.folder} lacks the statistics {', '.join(lacking)} of {reference!r}"
                found += [Problem(what, "statistics", hint)] if lacking else []
            elif reference in self.models:
                known = self.models[reference].fingerprint
                what = f"{self.folder} was made from other weights of {reference!r}: {known}, not "
                found.append(Problem(what + checkpoint.fingerprint, "statistics", hint))
            else:
                held = ", ".join(map(repr, self.models))
                found.append(
                    Problem(f"{self.folder} holds no statistics of {reference!r}, only of {held}", "statistics", hint)
                )
        data = {model.data for model in matched.values()}
        if "loss" in needed and not found and len(data) > 1:
            what = f"the losses in {self.folder} were measured on different texts, so they cannot be compared"
            found.append(Problem(what, "statistics", hint))
        return found


def kinds_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the kinds to gather for a recipe: for its method, its alignment and its relaxation."""
    from evomerge.merging.alignment.methods import needs_samples
    from evomerge.merging.method import METHODS

    asked = METHODS[recipe.merge_method].statistics if recipe.merge_method in METHODS else ()
    kinds = [NUMBERS.get(kind, kind) for kind in asked if kind != AXIS]
    kinds += ["scale"] if recipe.aim else []
    kinds += ["sample"] if needs_samples(recipe) else []
    return tuple(dict.fromkeys(kinds))


def recipe_problems(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], viewed: Mapping[str, Checkpoint]
) -> list[Problem]:
    """Return why the statistics that a recipe needs cannot be had: it names none, or those of other models.

    Args:
        recipe: of a known method.
        checkpoints: the recipe's models, as they lie on disk.
        viewed: the same as the recipe sees them.
    """
    from evomerge.merging.method import METHODS

    method = METHODS[recipe.merge_method]
    bases = {base for base in (recipe.base_model, *(part.base_model for part in recipe.slices or ())) if base}
    wanted = {name: method.statistics for name in recipe.parents() if not (method.needs_base and name in bases)}
    wanted = {name: kinds for name, kinds in wanted.items() if kinds}
    found: list[Problem] = []
    if recipe.aim is not None:
        wanted |= {name: (*wanted.get(name, ()), "scale") for name in bases}
        if not bases:
            what = "aim draws the merged weights back towards a base, and the recipe names none"
            found.append(Problem(what, "aim", "add base_model, the model that the others were fine-tuned from"))
    if not wanted:
        return found
    kinds = kinds_of(recipe)
    if recipe.statistics is None:
        who = method.name if method.statistics else "aim"
        hint = f"run `{command(list(wanted), kinds)}` and write `statistics: OUT` into the recipe"
        return [*found, Problem(f"{who} needs statistics of the models' activations or gradients", "statistics", hint)]
    try:
        opened = Statistics.open(recipe.statistics)
    except EvomergeError as error:
        return [*found, Problem(str(error), "statistics", f"run `{command(list(wanted), kinds)}`")]
    for asked in dict.fromkeys(wanted.values()):
        found += opened.problems({name: checkpoints[name] for name in wanted if wanted[name] == asked}, asked)
    changed = [n for n in wanted if set(wanted[n]) - set(NUMBERS) and _differs(checkpoints[n], viewed[n])]
    if changed:
        what = (
            f"the statistics of {', '.join(changed)} belong to its weights before `align` or `tokenizer` changed them"
        )
        hint = "leave those out, or write the changed models to folders first and gather statistics of these"
        found.append(Problem(what, "statistics", hint))
    return found


def _differs(checkpoint: Checkpoint, view: Checkpoint) -> bool:
    return view is not checkpoint and view.fingerprint != checkpoint.fingerprint


def command(references: Sequence[str], kinds: Sequence[str]) -> str:
    """Return the command that gathers ``kinds`` of statistics of these models."""
    models = " ".join(f"--model {reference}" for reference in references)
    return f"evomerge statistics OUT {models} --kinds {','.join(kinds)} --text FILE"


@lru_cache(maxsize=8)
def _opened(folder: Path, _changed: int) -> Statistics:
    index = folder / INDEX
    try:
        data = json.loads(index.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise CheckpointError(f"{index}: format {data['format']}, readable is {FORMAT}; make the statistics again")
        models = {entry["reference"]: _model(folder, entry) for entry in data["models"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: damaged ({type(error).__name__}: {error}); make the statistics again"
        ) from error
    return Statistics(folder, models, data["made"], sha256(index.read_bytes()).hexdigest()[:16])


def _model(folder: Path, entry: Mapping[str, Any]) -> ModelStatistics:
    inner = str(entry["folder"])
    if Path(inner).name != inner:
        raise CheckpointError(f"{folder / INDEX}: {inner!r} lies outside the folder; make the statistics again")
    return ModelStatistics(
        reference=entry["reference"],
        fingerprint=entry["fingerprint"],
        kinds=tuple(entry["kinds"]),
        numbers=dict(entry["numbers"]),
        axes=dict(entry["axes"]),
        shared=dict(entry["shared"]),
        data=entry["data"],
        tensors=read_headers(folder / inner),
    )
