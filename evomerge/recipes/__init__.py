"""Recipes: what they say, reading and writing them, and what they mean for each tensor."""

from evomerge.recipes.files import parse_recipe, read_recipe, write_recipe
from evomerge.recipes.parameters import evaluate_setting, resolve_parameter
from evomerge.recipes.planning import PlannedInput, PlannedTensor, count_layers, layer_of, plan, with_layer
from evomerge.recipes.recipe import (
    FilteredValue,
    ModelInput,
    OutputSlice,
    Parameters,
    ParameterSetting,
    Recipe,
    SliceInput,
    TokenizerSettings,
)

__all__ = [
    "FilteredValue",
    "ModelInput",
    "OutputSlice",
    "ParameterSetting",
    "Parameters",
    "PlannedInput",
    "PlannedTensor",
    "Recipe",
    "SliceInput",
    "TokenizerSettings",
    "count_layers",
    "evaluate_setting",
    "layer_of",
    "parse_recipe",
    "plan",
    "read_recipe",
    "resolve_parameter",
    "with_layer",
    "write_recipe",
]
