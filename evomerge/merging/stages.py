"""Recipes of several stages: models merged of merged models, each intermediate one in a folder until it is not needed.

A stage that is complete is not done again, also by another process after a kill. What can be known to be wrong with any
stage is said before the first is merged: a stage's tensors have the shapes that its own parents' headers promise.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from evomerge import __version__
from evomerge.checkpoints import Checkpoint, CheckpointView, TensorInfo, TensorSpec, open_checkpoint
from evomerge.errors import CheckpointError, ConfigError, ExportError, MergeError, Problem
from evomerge.merging.checks import check_recipe
from evomerge.merging.parents import Parents
from evomerge.merging.tensors import merge_dtypes
from evomerge.merging.to_folder import RECIPE, merge_to_folder, output_config
from evomerge.recipes import NamedRecipe, Recipe, write_recipes
from evomerge.recipes.files import stage_of

MARK = "evomerge_stage.json"  # in the folder of a finished stage: of what it was made
RESULT = "result"

Merge = Callable[[Recipe, Path, Parents], Path]


def merge_stages(
    stages: Sequence[NamedRecipe],
    out: Path | str,
    *,
    intermediates: Path | str | None = None,
    allow_pickle: Collection[str] = (),
    merge: Merge | None = None,
    merge_result: Merge | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Merge every stage that the result needs, and the result into ``out``; return ``out``.

    Stages that all have a name have no single result: each is written to the folder of its name inside ``out``.

    Args:
        stages: as `read_recipes` returns them.
        out: a folder that does not exist or is empty.
        intermediates: where the named stages stay, each in a folder of its name; every stage is merged then. By
            default they lie in a hidden folder beside ``out``, each until no other stage needs it. After a failure the
            folder stays, and calling again goes on from there.
        allow_pickle: models whose weights may be pickled.
        merge: merges one recipe into a folder; `merge_to_folder` by default.
        merge_result: the same for the result.
        tell: called with a line for each stage.

    Raises:
        ConfigError: a stage does not fit its models, or they cannot be found; lists every problem with its line.
        MergeError, CheckpointError: a stage cannot be carried out.
        ExportError: ``out`` or a stage's folder holds something else, or cannot be written.
    """
    out = Path(out).absolute()
    result = next((stage for stage in stages if stage.name is None), None)
    if result is not None:
        _check_free(out)
    opened, problems = check_stages(stages, allow_pickle)
    if problems:
        raise ConfigError(problems)
    hidden = out.parent / f".{out.name}.stages"
    kept = Path(intermediates) if intermediates is not None else out if result is None else None
    folder = (kept or hidden).absolute()
    keys = _keys(stages, opened)
    merge = merge or _merge
    done = {stage.name for stage in stages if _made_of(folder / str(stage.name)) == keys[str(stage.name)]}
    wanted = stages if kept else _needed(stages, done)
    left = Counter(name for stage in wanted if stage.name not in done for name in stage.uses)
    for stage in wanted:
        if stage.name is None:
            continue
        _merge_stage(stage, folder, keys, lambda stage: _parents(stage, opened, folder, allow_pickle), merge, tell)
        if kept is None and stage.name not in done:
            _free(stage, left, folder)
    if result is not None:
        tell("merging the result")
        work = hidden / RESULT
        shutil.rmtree(work, ignore_errors=True)
        (merge_result or merge)(result.recipe, work, _parents(result, opened, folder, allow_pickle))
        (work / RECIPE).write_text(write_recipes(stages), encoding="utf-8")
        _move(work, out)
    shutil.rmtree(hidden, ignore_errors=True)
    return out


def check_stages(
    stages: Sequence[NamedRecipe], allow_pickle: Collection[str] = ()
) -> tuple[dict[str, Checkpoint], list[Problem]]:
    """Return the opened models that are no stages, and every problem of the stages; no weights are read.

    A stage that builds a vocabulary is checked, but not those that merge its result: their turn tells.
    """
    names = {stage.name for stage in stages}
    opened: dict[str, Checkpoint] = {}
    problems: list[Problem] = []
    for stage in stages:
        for reference in stage.recipe.parents():
            if stage_of(reference) in names or reference in opened:
                continue
            try:
                opened |= Parents.open([reference], allow_pickle=allow_pickle).checkpoints
            except CheckpointError as error:
                hint = (
                    f"stages of this file: {', '.join(str(name) for name in names if name)}" if len(names) > 1 else ""
                )
                problems.append(Problem(str(error), (stage.lines or {}).get(reference, stage.where), hint))
    planned: dict[str, Checkpoint | None] = {}
    for stage in stages:
        seen = {ref: opened.get(ref, planned.get(stage_of(ref))) for ref in stage.recipe.parents()}
        known = {reference: checkpoint for reference, checkpoint in seen.items() if checkpoint is not None}
        found, outcome = _check_stage(stage, known) if len(known) == len(seen) else ([], None)
        problems += found
        if stage.name is not None:
            planned[stage.name] = outcome
    return opened, list(dict.fromkeys(problems))


def models_of(stages: Sequence[NamedRecipe]) -> tuple[str, ...]:
    """Return the models that the stages start from, those that are no stages, in order of first appearance."""
    names = {stage.name for stage in stages}
    parents = [reference for stage in stages for reference in stage.recipe.parents()]
    return tuple(dict.fromkeys(reference for reference in parents if stage_of(reference) not in names))


def _check_stage(stage: NamedRecipe, known: Mapping[str, Checkpoint]) -> tuple[list[Problem], Checkpoint | None]:
    """Return a stage's problems, and the model that it will make as far as that can be told."""
    parents = Parents(known)
    if problems := check_recipe(stage.recipe, parents):
        return [replace(p, where=f"{stage.where}: {p.where}".removesuffix(": ")) for p in problems], None
    if stage.recipe.tokenizer or stage.recipe.tokenizer_source:
        return [], None
    return [], PlannedModel(stage.recipe, str(stage.name), parents.viewed(stage.recipe))


class PlannedModel(CheckpointView):
    """The model that a recipe will make: its config, and its tensors' names and shapes, but no numbers."""

    def __init__(self, recipe: Recipe, name: str, parents: Parents) -> None:
        super().__init__(parents[recipe.base_model or recipe.parents()[0]], name)
        specs = [TensorSpec(s.name, s.shape, merge_dtypes(recipe, s)[1]) for s in parents.plan(recipe)]
        self.config = output_config(recipe, parents, specs)
        file = self.folder / "not merged yet"
        self.tensors = {s.name: TensorInfo(s.name, s.shape, s.dtype, file, 0, s.num_bytes) for s in specs}

    def tensor(self, name: str) -> torch.Tensor:
        """Return numbers that no other tensor of the model has: those to come are not known."""
        info = self.tensors[name]
        return torch.tensor(list(self.tensors).index(name)).to(info.dtype).expand(info.shape)


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not empty; name another folder or remove it first")


def _needed(stages: Sequence[NamedRecipe], done: Collection[str | None]) -> list[NamedRecipe]:
    """Return the stages that the result needs, itself included, in order; not what those that are done are made of."""
    wanted: set[str | None] = {None}
    for stage in reversed(stages):
        if stage.name in wanted and stage.name not in done:
            wanted |= set(stage.uses)
    return [stage for stage in stages if stage.name in wanted]


def _keys(stages: Sequence[NamedRecipe], opened: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Return stage → 16 hexadecimal digits of all that its weights depend on."""
    keys: dict[str, str] = {}
    for stage in stages:
        made_of = [keys.get(stage_of(ref)) or opened[ref].fingerprint for ref in stage.recipe.parents()]
        content = json.dumps([__version__, stage.recipe.hash, made_of])
        keys[str(stage.name)] = hashlib.sha256(content.encode()).hexdigest()[:16]
    return keys


def _parents(
    stage: NamedRecipe, opened: Mapping[str, Checkpoint], folder: Path, allow_pickle: Collection[str]
) -> Parents:
    """Open a stage's models; those that are stages lie in ``folder``."""
    found: dict[str, Checkpoint] = {}
    for reference in stage.recipe.parents():
        name, plus, adapter = reference.partition("+")
        if stage_of(reference) not in stage.uses:
            found[reference] = opened[reference]
        elif plus:
            found[reference] = open_checkpoint(f"{folder / name}+{adapter}", allow_pickle=allow_pickle)
        else:
            found[reference] = Checkpoint(folder / name, name)
    return Parents(found)


def _merge(recipe: Recipe, out: Path, parents: Parents) -> Path:
    return merge_to_folder(recipe, out, parents=parents)


def _merge_stage(
    stage: NamedRecipe,
    folder: Path,
    keys: Mapping[str, str],
    parents: Callable[[NamedRecipe], Parents],
    merge: Merge,
    tell: Callable[[str], None],
) -> None:
    """Merge one stage into the folder of its name, unless it is there."""
    name = str(stage.name)
    destination = folder / name
    if _made_of(destination) == keys[name]:
        tell(f"stage {name!r} is there already")
        return
    if destination.exists():
        if _made_of(destination) is None:
            raise ExportError(f"{destination} is no stage of an earlier merge, so it is not replaced; remove it first")
        shutil.rmtree(destination)
    tell(f"merging stage {name!r}")
    work = folder / f".{name.replace('/', '.')}.merging"
    shutil.rmtree(work, ignore_errors=True)
    try:
        merge(stage.recipe, work, parents(stage))
    except ConfigError as error:
        raise ConfigError([replace(p, where=f"{stage.where}: {p.where}") for p in error.problems]) from error
    except (MergeError, CheckpointError, ExportError) as error:
        raise type(error)(f"{stage.where}: {stage.title}: {error}") from error
    (work / MARK).write_text(json.dumps({"made_of": keys[name]}) + "\n", encoding="utf-8")
    _move(work, destination)


def _free(stage: NamedRecipe, left: Counter[str], folder: Path) -> None:
    """Remove what a stage was made of and no other needs; ``left`` counts those that need each."""
    for name in stage.uses:
        left[name] -= 1
        if not left[name]:
            (folder / name / MARK).unlink(missing_ok=True)  # first: what remains after a kill is no finished stage
            shutil.rmtree(folder / name, ignore_errors=True)


def _made_of(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / MARK).read_text(encoding="utf-8"))["made_of"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _move(work: Path, destination: Path) -> None:
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        work.rename(destination)
    except OSError as error:
        raise ExportError(f"{work} cannot be moved to {destination}: {error.strerror}") from error
