"""``evomerge calibrate``: an item bank from the responses of many models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from evomerge.errors import Problem
    from evomerge.fitness.irt.calibrate import Dimensions
    from evomerge.fitness.irt.quadrature_em import Model


class _Dimensions(click.ParamType):
    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto":
            return "auto"
        return click.IntRange(min=1).convert(value, param, ctx)


@click.command()
@click.argument("responses", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Choice(["rasch", "2pl", "3pl"]),
    default="2pl",
    show_default=True,
    help="What items differ in: difficulty; slope too; guessing too.",
)
@click.option(
    "--dimensions",
    type=_Dimensions(),
    default="auto",
    show_default=True,
    help="How many abilities; auto: as many as make held-out responses more likely.",
)
@click.option("--task", metavar="TASK", help="The task that the responses are to; of a folder: which one.")
@click.option("--metric", metavar="METRIC[,FILTER]", help="The metric that they are; of a folder: which one.")
@click.option("--drop-constant", is_flag=True, help="Leave out items to which all models respond the same.")
@click.option("--seed", default=0, show_default=True, help="Chooses the responses held out for auto.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def command(
    responses: Path,
    out: Path,
    model: Model,
    dimensions: Dimensions,
    task: str | None,
    metric: str | None,
    drop_constant: bool,
    seed: int,
    device: str,
) -> None:
    """Fit a response model to RESPONSES, and write the item bank OUT.yaml with OUT.safetensors.

    RESPONSES is a matrix of models × items in [0, 1], with missing cells: an npz, csv or parquet file, or a folder of
    lm-eval's samples_*.jsonl.
    """
    import torch

    from evomerge.errors import ConfigError, Problem
    from evomerge.fitness.irt.calibrate import calibrate
    from evomerge.fitness.irt.response_files import read_responses

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(Problem("no CUDA device can be used here", "--device", "leave the option out"))
    matrix = read_responses(responses, task, metric)
    if drop_constant:
        constant = matrix.constant_items()
        matrix = matrix.without_items(constant)
        if constant:
            click.echo(f"left out {len(constant)} constant items")
    _warn(matrix.warnings(str(responses)))
    found = calibrate(
        matrix, model, dimensions, seed=seed, device=device, report=lambda line: click.echo(line, err=True)
    )
    if not found.converged:
        click.secho(f"warning: the fit did not come to rest in {found.turns} turns", fg="yellow", err=True)
    bank = found.bank(matrix, matrix.task or task or responses.stem, matrix.metric or metric or "response")
    header, _ = bank.write(out)
    count = found.parameters.dimensions
    click.echo(
        f"{bank.task}: {len(matrix.items)} items, {len(matrix.models)} models, {model}, {count} "
        f"dimension{'s' * (count > 1)}, log-likelihood {found.log_likelihood:.3f}"
    )
    click.echo(str(header))


def _warn(problems: list[Problem]) -> None:
    for problem in problems:
        click.secho(f"warning: {problem}", fg="yellow", err=True)
