"""What can be known to be wrong with a path of layers before it is run or merged."""

from __future__ import annotations

from collections.abc import Iterator

from evomerge.errors import ConfigError, Problem
from evomerge.merging.compatibility import shape_problems
from evomerge.merging.depths import full_config
from evomerge.merging.parents import Parents
from evomerge.merging.tensors import folding
from evomerge.recipes import Recipe, layer_of, path_of, with_layer

# Fields with which a layer computes something else in another place.
BY_POSITION = ("scale_attn_by_inverse_layer_idx",)
# Fields that layers compute with, beside those that every merge compares; the exported model has one value of each.
OF_LAYERS = (
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "hidden_activation"),
    *("sliding_window", "query_pre_attn_scalar", "attn_logit_softcapping", "partial_rotary_factor", "rotary_pct"),
    *("attention_multiplier", "residual_multiplier", "use_parallel_residual", "parallel_attn", "clip_qkv"),
    *("norm_topk_prob", "scale_attn_weights"),
)


def path_problems(recipe: Recipe, parents: Parents) -> list[Problem]:
    """Return why the recipe's layers do not fit on one another, or its scales not into weights."""
    if not recipe.slices:
        return []
    if path_of(recipe) and (plain := [model for model in recipe.parents() if parents[model].is_plain]):
        what = "a path through layers needs models of transformers, and this is a folder of plain tensors"
        return [Problem(what, plain[0], "merge their weights: kind: parameter")]
    found = list(_shapes(recipe, parents))
    for model in recipe.parents():
        for field in BY_POSITION:
            if path_of(recipe) and parents[model].config.get(field):
                what = f"its layers compute with their own numbers ({field}), which paths change"
                found.append(Problem(what, model, "set the field to false, if the model works without it"))
    found += _configs(recipe, parents)
    try:
        folding(recipe, parents)
    except ConfigError as error:
        found += error.problems
    return found


def _configs(recipe: Recipe, parents: Parents) -> Iterator[Problem]:
    donor = recipe.base_model or recipe.parents()[0]
    ours = full_config(parents[donor])
    for model in dict.fromkeys(step.model for step in path_of(recipe) or ()):
        theirs = full_config(parents[model])
        for field in OF_LAYERS:
            if field in ours and field in theirs and ours[field] != theirs[field]:
                what = (
                    f"{field} is {ours[field]!r} in {donor}, {theirs[field]!r} in {model}, and a model has one for all"
                )
                yield Problem(what, model, "route through models of one base")


def _shapes(recipe: Recipe, parents: Parents) -> Iterator[Problem]:
    """Yield the layers' tensors of a shape that no layer of the model has whose configuration the result gets."""
    donor = recipe.base_model or recipe.parents()[0]
    theirs: dict[str, set[tuple[int, ...]]] = {}
    for name, info in parents[donor].tensors.items():
        if layer_of(name) is not None:
            theirs.setdefault(with_layer(name, 0), set()).add(info.shape)
    for step in parents.plan(recipe):
        model, tensor = next(iter(step.inputs.items()))
        known = theirs.get(with_layer(tensor, 0))
        if step.planned.layer is not None and known and step.shape not in known:
            yield from shape_problems(tensor, {donor: min(known), model: step.shape})
