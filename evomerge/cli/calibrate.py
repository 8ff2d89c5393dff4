"""``evomerge calibrate``: item banks, from the responses of many models or for an experiment."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from evomerge.errors import Problem
    from evomerge.fitness.irt.bank import ItemBank
    from evomerge.fitness.irt.calibrate import Dimensions
    from evomerge.fitness.irt.quadrature_em import Model

# Options that mean something to one of the two ways only: by parameter, what the user calls them.
FOR_RESPONSES = {
    "task": "--task",
    "metric": "--metric",
    "drop_constant": "--drop-constant",
    "keep_constant": "--keep-constant",
    "device": "--device",
}
FOR_EXPERIMENTS = {"models": "--models", "soft": "--soft", "overrides": "--set", "ray_address": "--ray-address"}


class _Dimensions(click.ParamType):
    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto":
            return "auto"
        return click.IntRange(min=1).convert(value, param, ctx)


@click.command()
@click.argument("paths", nargs=-1, metavar="[RESPONSES] OUT", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "experiment",
    metavar="EXPERIMENT",
    help="Instead of RESPONSES: evaluate this experiment's models and random merges.",
)
@click.option(
    "--model",
    type=click.Choice(["rasch", "2pl", "3pl"]),
    help="What items differ in: difficulty; slope too; guessing too.  [default: 2pl]",
)
@click.option(
    "--dimensions",
    type=_Dimensions(),
    help="How many abilities; auto: as many as make held-out responses more likely.  [default: auto; --from: 1]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Chooses the responses held out for auto; with --from, the random merges.  [default: 0]",
)
@click.option("--task", metavar="TASK", help="The task that the responses are to; of a folder: which one.")
@click.option("--metric", metavar="METRIC[,FILTER]", help="The metric that they are; of a folder: which one.")
@click.option("--drop-constant", is_flag=True, help="Leave out items to which all models respond the same.")
@click.option("--keep-constant", is_flag=True, help="Keep them: they say nothing of models, but count in the score.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--models", type=click.IntRange(min=4), help="With --from: random merges to evaluate.  [default: 12]")
@click.option("--soft", is_flag=True, help="With --from: ask for the probability of right answers too.")
@click.option(
    "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="With --from: override a field; repeatable."
)
@click.option("--ray-address", help="With --from: use the Ray cluster at this address.")
@click.pass_context
def command(
    context: click.Context,
    paths: tuple[Path, ...],
    experiment: str | None,
    model: Model | None,
    dimensions: Dimensions | None,
    seed: int | None,
    task: str | None,
    metric: str | None,
    drop_constant: bool,
    keep_constant: bool,
    device: str,
    models: int | None,
    soft: bool,
    overrides: tuple[str, ...],
    ray_address: str | None,
) -> None:
    """Fit a response model to RESPONSES, and write the item bank OUT.yaml with OUT.safetensors.

    RESPONSES is a matrix of models × items in [0, 1], with missing cells: an npz, csv or parquet file, or a folder of
    lm-eval's samples_*.jsonl.

    With --from EXPERIMENT, evaluate its base, its parents, their uniform merge and random merges on all search items,
    and write an item bank of each objective into the folder OUT; the experiment then says fitness.estimate.bank: OUT.
    Its estimate section gives the defaults. A call that was stopped goes on where it was when it is repeated.

    Example: evomerge calibrate --from quickstart banks/quickstart
    """
    if experiment is None:
        responses, out = _both(paths)
        _refuse(context, FOR_EXPERIMENTS, "needs --from EXPERIMENT")
        if drop_constant and keep_constant:
            raise click.UsageError("--drop-constant and --keep-constant exclude each other")
        _from_responses(
            responses,
            out,
            model or "2pl",
            dimensions or "auto",
            task,
            metric,
            drop_constant,
            keep_constant,
            seed,
            device,
        )
    else:
        out = _alone(paths)
        _refuse(context, FOR_RESPONSES, "is of RESPONSES, and means nothing with --from")
        options = {"models": models, "model": model, "dimensions": dimensions, "seed": seed}
        chosen = {name: value for name, value in options.items() if value is not None}
        _from_experiment(experiment, out, chosen, soft, overrides, ray_address)


def _both(paths: tuple[Path, ...]) -> tuple[Path, Path]:
    if len(paths) != 2:
        raise click.UsageError("give RESPONSES and OUT, or --from EXPERIMENT and OUT")
    return paths[0], paths[1]


def _alone(paths: tuple[Path, ...]) -> Path:
    if len(paths) == 2:
        raise click.UsageError(
            f"RESPONSES ({paths[0]}) and --from exclude each other: a bank is made from responses that are there, or "
            "from those of an experiment's models; leave one of them out"
        )
    if len(paths) != 1:
        raise click.UsageError("give the folder OUT, and nothing else, with --from EXPERIMENT")
    return paths[0]


def _refuse(context: click.Context, options: dict[str, str], why: str) -> None:
    for name, flag in options.items():
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"{flag} {why}")


def _from_responses(
    responses: Path,
    out: Path,
    model: Model,
    dimensions: Dimensions,
    task: str | None,
    metric: str | None,
    drop_constant: bool,
    keep_constant: bool,
    seed: int | None,
    device: str,
) -> None:
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
        matrix,
        model,
        dimensions,
        seed=seed or 0,
        device=device,
        report=lambda line: click.echo(line, err=True),
        keep_constant=keep_constant,
    )
    if not found.converged:
        click.secho(f"warning: the fit did not come to rest in {found.turns} turns", fg="yellow", err=True)
    bank = found.bank(matrix, matrix.task or task or responses.stem, matrix.metric or metric or "response")
    header, _ = bank.write(out)
    click.echo(f"{_summary(bank.task, bank)}, log-likelihood {found.log_likelihood:.3f}")
    click.echo(str(header))


def _from_experiment(
    name: str, out: Path, options: dict[str, Any], soft: bool, overrides: tuple[str, ...], ray_address: str | None
) -> None:
    from evomerge.cli.display import make_display
    from evomerge.experiments.calibrate_from import calibrate_from
    from evomerge.experiments.calibration import bank_path
    from evomerge.experiments.schema import read_experiment
    from evomerge.fitness.estimate_config import EstimateConfig, SoftConfig
    from evomerge.fitness.irt.bank import bank_files

    experiment = read_experiment(name, overrides)
    own = experiment.fitness.estimate or EstimateConfig()
    config = own.calibration.model_copy(update=options)
    asked = own.soft or (SoftConfig() if soft else None)
    try:
        with make_display() as display:
            banks = calibrate_from(experiment, out, config, display, soft=asked, ray_address=ray_address)
    except KeyboardInterrupt:
        click.echo(f"\nstopped; what was evaluated is kept in {out}: the same command goes on from there")
        raise
    for objective, bank in banks.items():
        click.echo(f"{_summary(objective, bank)}: {bank_files(bank_path(out, objective, list(banks)))[0]}")
        if not bank.made["converged"]:
            click.secho(f"warning: the fit of {objective} did not come to rest", fg="yellow", err=True)
    click.echo(f"use them: evomerge run {name} --set {shlex.quote(f'fitness.estimate.bank={out}')}")


def _summary(name: str, bank: ItemBank) -> str:
    count = bank.parameters.dimensions
    return (
        f"{name}: {len(bank.items)} items, {len(bank.models)} models, {bank.made['model']}, {count} "
        f"dimension{'s' * (count > 1)}"
    )


def _warn(problems: list[Problem]) -> None:
    for problem in problems:
        click.secho(f"warning: {problem}", fg="yellow", err=True)
