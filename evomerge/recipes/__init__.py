"""Recipes: what they say, reading and writing them, and what they mean for each tensor."""

from evomerge.recipes.files import (
    NamedRecipe,
    parse_recipe,
    parse_recipes,
    read_recipe,
    read_recipes,
    write_recipe,
    write_recipes,
)
from evomerge.recipes.mergekit import stages_to_mergekit, to_mergekit
from evomerge.recipes.parameters import evaluate_setting, resolve_parameter
from evomerge.recipes.planning import (
    PlannedInput,
    PlannedTensor,
    count_layers,
    find_stacks,
    layer_of,
    plan,
    stack_of,
    with_layer,
)
from evomerge.recipes.recipe import (
    ActivationRelaxation,
    Alignment,
    FilteredValue,
    ModelInput,
    Module,
    OutputSlice,
    Parameters,
    ParameterSetting,
    Recipe,
    SliceInput,
    TokenizerSettings,
)

__all__ = [
    "ActivationRelaxation",
    "Alignment",
    "FilteredValue",
    "ModelInput",
    "Module",
    "NamedRecipe",
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
    "find_stacks",
    "layer_of",
    "parse_recipe",
    "parse_recipes",
    "plan",
    "read_recipe",
    "read_recipes",
    "resolve_parameter",
    "stack_of",
    "stages_to_mergekit",
    "to_mergekit",
    "with_layer",
    "write_recipe",
    "write_recipes",
]
