"""One vocabulary for parents that have different ones: every parent is seen with the merged vocabulary's rows.

Each tensor that counts tokens (embedding, head, head bias) gets its rows in the order of the merged vocabulary. The
rules for rows that a model lacks are mergekit's (mergekit 0.1.5, ``mergekit/tokenizer/embed.py``), applied tensor by
tensor among the models that make it: the row of the only model that has the token; else the base's, if it has it; else
the average of those that have it; zero if none has. Rows behind the last token are the mean of all others.

Where no vocabulary is named, models with equal tokens but unequally many rows are brought to the largest number by the
same rules, a row taking a token's place.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evomerge.checkpoints import Checkpoint, CheckpointView, compare_tokenizers
from evomerge.checkpoints.merged_tokenizer import merge_tokenizers
from evomerge.checkpoints.vocabulary_tensors import vocabulary_axes
from evomerge.errors import CheckpointError, ConfigError, Problem, suggest
from evomerge.merging.optional import donor_of
from evomerge.merging.token_ids import taking_ids, with_ids, with_rows
from evomerge.merging.token_rows import RowCopies, VocabularyView
from evomerge.merging.token_sources import NONE, TokenRows, Vocabulary
from evomerge.recipes import Recipe, TokenizerSettings, layer_of, plan
from evomerge.recipes.recipe import TokenFromModel

if TYPE_CHECKING:
    from evomerge.merging.parents import Parents

ROLES = ("bos", "eos", "pad")
NAMED_SOURCES = ("base", "union")
_LOGGER = logging.getLogger(__name__)


def settings_of(recipe: Recipe) -> TokenizerSettings | None:
    """Return what the recipe asks for, in the long form; None if it names no vocabulary."""
    if recipe.tokenizer is not None:
        return recipe.tokenizer
    return TokenizerSettings(source=recipe.tokenizer_source) if recipe.tokenizer_source is not None else None


def unify(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Mapping[str, Checkpoint]:
    """Return the models as if all had the merged vocabulary; unchanged where there is nothing to do.

    Raises:
        ConfigError: the recipe's tokenizer settings cannot be had from these models; says each reason.
    """
    settings = settings_of(recipe)
    if settings is None and not _rows_differ(checkpoints):
        return checkpoints
    if all(vocabulary_of(checkpoint) is not None for checkpoint in checkpoints.values()):
        return checkpoints  # they are seen so already
    if problems := [*settings_problems(recipe)]:
        raise ConfigError(problems)
    from evomerge.merging.parents import Parents  # which imports the views, this one among them

    parents = Parents(checkpoints)
    axes = _axes(checkpoints)
    rows = {reference: _rows(checkpoint, axes) for reference, checkpoint in checkpoints.items()}
    if not all(rows.values()):
        return checkpoints  # some have no vocabulary at all, as models of images
    if settings is not None:
        vocabulary = _merged(recipe, settings, checkpoints, rows)
    elif compare_tokenizers(list(checkpoints.values())).kind == "different":
        return checkpoints  # refused by `check_recipe`
    else:
        vocabulary = _padded(rows)
    for pairs in parents.tied.values():
        axes.update({name: axes[source] for name, source in pairs.items() if source in axes})
    copies = _copies(recipe, parents, axes, vocabulary)
    untied = parents.untied(list(checkpoints))
    views: dict[str, Checkpoint] = {}
    for reference, checkpoint in checkpoints.items():
        config = _config(recipe, reference, checkpoints, vocabulary)
        shared = {name: source for name, source in parents.tied[reference].items() if name in untied}
        if shared:
            config["tie_word_embeddings"] = False
        views[reference] = VocabularyView(
            checkpoint, config, copies[reference], shared, parents.tensor, checkpoints, vocabulary
        )
    return views


def settings_problems(recipe: Recipe) -> list[Problem]:
    """Return what is wrong with the recipe's tokenizer settings, whatever its models are."""
    settings = settings_of(recipe)
    if settings is None:
        return []
    models = recipe.parents()
    where = "tokenizer_source" if recipe.tokenizer is None else "tokenizer.source"
    found: list[Problem] = []
    if settings.source not in (*NAMED_SOURCES, *models):
        what = f"the tokenizer source {settings.source!r} is none of the recipe's models"
        found.append(Problem(what, where, suggest(settings.source, [*NAMED_SOURCES, *models])))
    for token, entry in (settings.tokens or {}).items():
        source = entry.source
        model = source.model if isinstance(source, TokenFromModel) else source
        if isinstance(model, str) and model not in models:
            what = f"the embedding of {token!r} is to come from {model!r}, which is none of the recipe's models"
            found.append(Problem(what, f"tokenizer.tokens.{token}.source", suggest(model, models)))
        if not token:
            found.append(Problem("the empty text is no token", "tokenizer.tokens", "remove it"))
    return found


def _rows_differ(checkpoints: Mapping[str, Checkpoint]) -> bool:
    """Whether some tensor outside the layers has different shapes; cheap, so that most recipes pay nothing more."""
    shapes: dict[str, tuple[int, ...]] = {}
    return any(
        shapes.setdefault(name, info.shape) != info.shape
        for checkpoint in checkpoints.values()
        for name, info in checkpoint.tensors.items()
        if layer_of(name) is None
    )


def _axes(checkpoints: Mapping[str, Checkpoint]) -> dict[str, int]:
    try:
        return {name: axis for checkpoint in checkpoints.values() for name, axis in vocabulary_axes(checkpoint).items()}
    except CheckpointError as error:
        raise ConfigError(Problem(str(error), "tokenizer_source")) from error


def _rows(checkpoint: Checkpoint, axes: Mapping[str, int]) -> int:
    """Return for how many tokens every vocabulary tensor of this model has room; 0 if it has no such tensor."""
    shapes = {name: checkpoint.tensors[name].shape for name in axes if name in checkpoint.tensors}
    return min((shape[axes[name]] for name, shape in shapes.items() if len(shape) > axes[name]), default=0)


def _padded(rows: Mapping[str, int]) -> Vocabulary:
    most = max(rows.values())
    ids = torch.arange(most)
    return Vocabulary(most, ids, {model: torch.where(ids < count, ids, NONE) for model, count in rows.items()})


def _merged(
    recipe: Recipe, settings: TokenizerSettings, checkpoints: Mapping[str, Checkpoint], rows: Mapping[str, int]
) -> Vocabulary:
    chosen = settings.tokens or {}
    try:
        merged = merge_tokenizers(settings.source, donor_of(recipe), checkpoints, rows, list(chosen))
    except CheckpointError as error:
        raise ConfigError(Problem(str(error), "tokenizer")) from error
    tokens = sorted(merged.vocabulary, key=merged.vocabulary.__getitem__)
    ids = torch.tensor([merged.vocabulary[token] for token in tokens])
    places = {}
    for model, vocabulary in merged.vocabularies.items():
        place = torch.tensor([vocabulary.get(token, NONE) for token in tokens])
        places[model] = torch.where(place < rows[model], place, NONE)
    count = max(len(tokens), 1 + int(ids.max()))
    multiple = settings.pad_to_multiple_of or 1
    count = -(-count // multiple) * multiple
    _tell_if_smaller(count, rows)
    return Vocabulary(count, ids, places, merged, chosen)


def _tell_if_smaller(count: int, rows: Mapping[str, int]) -> None:
    larger = {model: size for model, size in rows.items() if size > count}
    if larger:
        listed = ", ".join(f"{model} has {size}" for model, size in larger.items())
        _LOGGER.warning(
            "the merged vocabulary has %d rows, %s: rows without a token of the merged tokenizer are left out, as by "
            "mergekit; tokenizer.pad_to_multiple_of adds rows",
            count,
            listed,
        )


def _copies(
    recipe: Recipe, parents: Parents, axes: Mapping[str, int], vocabulary: Vocabulary
) -> dict[str, dict[str, RowCopies]]:
    """Return model → tensor → how it is made with the merged rows; what stays as it is is left out.

    Raises:
        ConfigError: a token's embedding is to come from where there is none.
    """
    models = list(parents.checkpoints)
    names = parents.tensor_names(models)
    copies: dict[str, dict[str, RowCopies]] = {model: {} for model in models}
    problems: list[Problem] = []
    for planned in plan(recipe, names):
        if planned.name not in axes:
            continue
        infos = {e.model: info for e in planned.inputs if (info := parents.info(e.model, e.tensor)) is not None}
        inner = {_without_axis(info.shape, axes[planned.name]) for info in infos.values()}
        if len(inner) > 1:
            continue  # refused for its shapes
        dtype = reduce(torch.promote_types, (info.dtype for info in infos.values()))
        rows = TokenRows(planned, {m: info.shape[axes[planned.name]] for m, info in infos.items()}, vocabulary)
        problems += rows.problems
        for model in models if not rows.problems else ():
            info = parents.info(model, planned.name)
            if info is None or (model not in infos and _without_axis(info.shape, axes[planned.name]) not in inner):
                continue
            shape = list(info.shape)
            shape[axes[planned.name]] = vocabulary.rows
            work = getattr(torch, recipe.dtype) if recipe.dtype and dtype.is_floating_point else dtype
            made = rows.copies(model, tuple(shape), work, axes[planned.name])
            stored = planned.name in parents[model].tensors
            if not (stored and _is_same(made, model, info.shape, info.dtype)):
                copies[model][planned.name] = made
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return copies


def _without_axis(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _is_same(made: RowCopies, model: str, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    if made.shape != shape or made.dtype != dtype or len(made.copied) != 1:
        return False
    of, to, where = made.copied[0]
    return of == model and len(to) == made.shape[made.axis] and torch.equal(to, where)


def _config(
    recipe: Recipe, reference: str, checkpoints: Mapping[str, Checkpoint], vocabulary: Vocabulary
) -> dict[str, Any]:
    """Return a model's config with the merged vocabulary's size and token ids."""
    config = with_rows(checkpoints[reference].config, vocabulary.rows)
    return (
        config if vocabulary.tokenizer is None else with_merged_ids(recipe, reference, config, checkpoints, vocabulary)
    )


def with_merged_ids(
    recipe: Recipe,
    reference: str,
    fields: Mapping[str, Any],
    checkpoints: Mapping[str, Checkpoint],
    vocabulary: Vocabulary,
    file: str = "",
) -> dict[str, Any]:
    """Return fields of a model's config, or of its ``file``, with the ids of the merged vocabulary.

    Ids stand for tokens, so they are translated. A model named as the tokenizer's source says its own.
    """
    merged = vocabulary.tokenizer
    settings = settings_of(recipe)
    if merged is None or settings is None:
        return dict(fields)
    tokens = {index: token for token, index in merged.vocabularies[reference].items()}

    def translate(index: int) -> int | None:
        return merged.vocabulary.get(tokens[index]) if index in tokens else index

    found = with_ids(fields, translate)
    if settings.source in checkpoints and settings.source not in NAMED_SOURCES:
        source = checkpoints[settings.source]
        found = taking_ids(found, read_json(source.folder / file) if file else source.config)
    for role in ROLES:
        name = f"{role}_token_id"
        if fields.get(name) is not None and found.get(name) is None:
            found[name] = getattr(merged.tokenizer, name)
    return found


def vocabulary_of(checkpoint: Checkpoint) -> Vocabulary | None:
    """Return the merged vocabulary that a checkpoint is seen with, through other views too; None if it has its own."""
    while isinstance(checkpoint, CheckpointView):
        if isinstance(checkpoint, VocabularyView):
            return checkpoint.vocabulary
        checkpoint = checkpoint.source
    return None


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
