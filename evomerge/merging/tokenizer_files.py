"""What goes with merged weights: tokenizer, chat template, and generation config with the merged vocabulary's ids."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints import Checkpoint, copy_generation_config, copy_tokenizer
from evomerge.checkpoints.chat_templates import (
    AUTO,
    CHAT_TEMPLATES,
    check_template,
    commonest_template,
    template_of,
    write_template,
)
from evomerge.checkpoints.tokenizers import GENERATION_CONFIG, load_tokenizer
from evomerge.errors import ConfigError, Problem
from evomerge.merging.optional import donor_of
from evomerge.merging.token_ids import vocabulary_fields
from evomerge.merging.vocabulary import (
    NAMED_SOURCES,
    read_json,
    settings_of,
    vocabulary_of,
    with_merged_ids,
)
from evomerge.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_problems(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> list[Problem]:
    """Return what is wrong with the recipe's chat template."""
    try:
        template = chat_template(recipe, checkpoints)
        if template is not None:
            check_template(template)
    except ConfigError as error:
        return list(error.problems)
    return []


def chat_template(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> str | None:
    """Return the chat template that the recipe asks for; None to keep the tokenizer's own.

    Raises:
        ConfigError: it is to be a model's, which has none.
    """
    chosen = recipe.chat_template
    if chosen is None or chosen in CHAT_TEMPLATES:
        return CHAT_TEMPLATES.get(chosen or "")
    if chosen == AUTO:
        return commonest_template([checkpoints[reference].folder for reference in recipe.parents()])
    if chosen in recipe.parents():
        template = template_of(checkpoints[chosen].folder)
        if template is None:
            raise ConfigError(Problem(f"{chosen} has no chat template", "chat_template", "name another model"))
        return template
    return chosen


def write_tokenizer(recipe: Recipe, checkpoints: Mapping[str, Checkpoint], folder: Path) -> dict[str, Any]:
    """Write the merged model's tokenizer, chat template and generation config; return what its config says of them.

    The files of a tokenizer that is one model's are copied byte for byte.

    Args:
        checkpoints: the recipe's models, as the recipe sees them.
        folder: of the merged model.

    Raises:
        ConfigError: the model that is to give the chat template has none.
    """
    donor = checkpoints[donor_of(recipe)]
    vocabulary = vocabulary_of(donor)
    if vocabulary is not None and vocabulary.tokenizer is not None:
        vocabulary.tokenizer.write(folder)
    else:
        copy_tokenizer(_source(recipe, checkpoints).folder, folder)
    template = chat_template(recipe, checkpoints)
    if template is not None:
        write_template(template, folder)
    generation = generation_fields(recipe, checkpoints)
    if generation is None or vocabulary is None:
        copy_generation_config(donor.folder, folder)
    else:
        text = json.dumps(generation, indent=2, ensure_ascii=False)
        (folder / GENERATION_CONFIG).write_text(text + "\n", encoding="utf-8")
    return {} if vocabulary is None else vocabulary_fields(donor.config)


def merged_tokenizer(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> PreTrainedTokenizerBase | None:
    """Return the merged model's tokenizer with its chat template, as transformers loads it; None if it has none.

    Args:
        checkpoints: the recipe's models, as the recipe sees them.

    Raises:
        CheckpointError: a tokenizer cannot be read.
    """
    vocabulary = vocabulary_of(checkpoints[donor_of(recipe)])
    if vocabulary is not None and vocabulary.tokenizer is not None:
        tokenizer: PreTrainedTokenizerBase | None = copy.deepcopy(vocabulary.tokenizer.tokenizer)
    else:
        tokenizer = load_tokenizer(_source(recipe, checkpoints))
    template = chat_template(recipe, checkpoints)
    if tokenizer is not None and template is not None:
        tokenizer.chat_template = template
    return tokenizer


def generation_fields(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any] | None:
    """Return the merged model's generation config: the donor's, with the merged vocabulary's ids; None without one."""
    reference = donor_of(recipe)
    fields = read_json(checkpoints[reference].folder / GENERATION_CONFIG)
    vocabulary = vocabulary_of(checkpoints[reference])
    if not fields or vocabulary is None:
        return fields or None
    return with_merged_ids(recipe, reference, fields, checkpoints, vocabulary, GENERATION_CONFIG)


def _source(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Checkpoint:
    """Return the model whose tokenizer is taken as it is."""
    settings = settings_of(recipe)
    named = settings is not None and settings.source in checkpoints and settings.source not in NAMED_SOURCES
    return checkpoints[settings.source if settings is not None and named else donor_of(recipe)]
