"""``evomerge kinship``: how alike models are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from evomerge.experiments.kinship import Compared


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL MODEL…|EXPERIMENT|RUN")
@click.option("--base", metavar="MODEL", help="The model that they were fine-tuned from. [default: the EXPERIMENT's]")
@click.option(
    "--metric",
    type=click.Choice(["pcc", "cs", "ed"]),
    default="pcc",
    show_default=True,
    help="Pearson correlation, cosine similarity or Euclidean distance of task vectors.",
)
@click.option("--by", type=click.Choice(["group"]), help="One matrix for each group of tensors: attention, mlp, ….")
@click.option("--json", "as_json", is_flag=True, help="Print all metrics as JSON instead.")
def command(models: tuple[str, ...], base: str | None, metric: str, by: str | None, as_json: bool) -> None:
    """Compare the task vectors of every two models: of those named, or of the parents of an EXPERIMENT or RUN.

    A task vector is what fine-tuning changed: a model less its base. Weights are read once, whatever the number of
    models, and memory does not grow with their size. LoRA adapters are MODEL+ADAPTER.

    Example: evomerge kinship zoo/math-en zoo/japanese --base zoo/base
    """
    from rich.console import Console
    from rich.progress import Progress

    from evomerge.experiments.kinship import products_of
    from evomerge.reports.kinship import kinship_data, kinship_table

    compared = _compared(models, base)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("comparing tensors", total=None)
        parts = products_of(
            compared,
            by_group=by == "group",
            report=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        import json

        click.echo(json.dumps(kinship_data(parts, compared.models, compared.base), indent=2, ensure_ascii=False))
    else:
        Console().print(kinship_table(parts, list(compared.models), metric))


def _compared(models: tuple[str, ...], base: str | None) -> Compared:
    from evomerge.errors import ConfigError, Problem
    from evomerge.experiments.kinship import models_compared, parents_compared

    if len(models) == 1:
        return parents_compared(models[0], base)
    if base is None:
        what = "task vectors are differences from a base model; name the one that the models were fine-tuned from"
        raise ConfigError(Problem(what, "--base"))
    return models_compared(models, base)
