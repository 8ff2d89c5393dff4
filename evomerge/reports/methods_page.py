"""The page of merge methods (docs/methods.md), written from their registrations."""

from __future__ import annotations

import re

from evomerge.merging import MergeMethod, Parameter
from evomerge.registry import Registry

_INTRODUCTION = """\
# Merge methods

<!-- Written by `make docs` from the registrations in evomerge/merging/methods/; do not edit. -->

Legend: θᵢ the tensor of model i, θ₀ the base's, δᵢ = θᵢ − θ₀ its task vector, wᵢ a weight of model i, λ a factor of
the merge. *Genes* are the parameters that a search varies unless told otherwise, over the range given. Sums are
float32; the result is rounded once to the recipe's dtype. *Kind*: `elementwise` methods work on tensors of any shape,
entry by entry (plus numbers of the whole tensor, such as norms); `tensor` methods need all entries at once; `matrix`
methods give rows and columns a meaning, and say what happens to other tensors.
"""


def methods_page(methods: Registry[MergeMethod]) -> str:
    """Return the page as Markdown: a table of all methods, then a section for each."""
    entries = list(methods.items())
    lines = [
        _INTRODUCTION,
        "| method | what it does | needs (may have) | kind | genes |",
        "| --- | --- | --- | --- | --- |",
        *(_row(name, method) for name, method in entries),
    ]
    for name, method in entries:
        lines += ["", method_section(name, method)]
    return "\n".join(lines) + "\n"


def method_section(name: str, method: MergeMethod) -> str:
    """Return what there is to know of one method, as Markdown."""
    return "\n".join(_section(name, method))


def _row(name: str, method: MergeMethod) -> str:
    genes = ", ".join(f"`{p.name}`" for p in method.parameters if p.searchable)
    needs = ["base"] * method.needs_base + ["(base)"] * method.optional_base + ["statistics"] * bool(method.statistics)
    return f"| [`{name}`](#{name}) | {_cell(method.summary)} | {', '.join(needs)} | {method.kind} | {genes} |"


def _section(name: str, method: MergeMethod) -> list[str]:
    lines = [f"## {name}", "", f"{_sentence(method.summary)} {_sentence(method.paper)}", ""]
    lines += ["    " + line for line in method.formula.splitlines()]
    facts = [
        f"- models: {_models(method)}",
        f"- cost: {method.cost}"
        + ("; some work is done once for all merges of the same parents" * bool(method.prepare)),
    ]
    if method.statistics:
        facts.append(f"- needs statistics ({', '.join(method.statistics)}): see [statistics](statistics.md)")
    if method.randomised:
        facts.append("- draws random numbers from the recipe's `seed`")
    if method.ordered:
        facts.append("- the order of the models matters")
    if method.others:
        facts.append(f"- other tensors: {method.others}")
    if method.ignored:
        facts.append(f"- accepted for mergekit's sake, without effect: {', '.join(f'`{n}`' for n in method.ignored)}")
    lines += ["", *facts]
    if method.parameters:
        lines += [
            "",
            "| parameter | of | default | range worth searching | meaning |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [_parameter(parameter) for parameter in method.parameters]
    return lines


def _models(method: MergeMethod) -> str:
    low, high = method.min_models, method.max_models
    count = f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
    return f"{count}, the base included" if method.needs_base else count


def _parameter(parameter: Parameter) -> str:
    of = "each model" if parameter.per_model else "the merge"
    default = "required" if parameter.required else _number(parameter.default)
    searched = f"{parameter.low:g} to {parameter.high:g}" if parameter.kind == "float" else "yes or no"
    return (
        f"| `{parameter.name}` | {of} | {default} | {searched}{' (gene)' if parameter.searchable else ''} "
        f"| {_cell(parameter.description)} |"
    )


def _number(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _sentence(text: str) -> str:
    text = re.sub(r"(https?://[^\s;,]+)", r"<\1>", text)
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
