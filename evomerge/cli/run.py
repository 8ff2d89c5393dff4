"""``evomerge run``: launch a search, or go on with a finished one."""

from __future__ import annotations

import json
from pathlib import Path

import click

from evomerge.cli.outcome import conclude, known_loggers, resumable
from evomerge.errors import ConfigError, Problem


@click.command()
@click.argument("experiment")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder. [default: runs/NAME]")
@click.option(
    "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a field of the file; repeatable."
)
@click.option(
    "--extend-trials",
    type=click.IntRange(min=1),
    metavar="N",
    help="Add N trials to the run EXPERIMENT or --out.",
)
@click.option("--journal", metavar="URL", help="Keep the journal on this Redis or PostgreSQL server.")
@click.option(
    "--logger",
    "loggers",
    multiple=True,
    metavar="NAME",
    help="Tell an experiment tracker: tensorboard, wandb, mlflow or trackio; repeatable.",
)
@click.option("--ray-address", help="Ray cluster: `auto`, HOST:PORT or `local`. [default: $RAY_ADDRESS, or local]")
def command(
    experiment: str,
    out: Path | None,
    overrides: tuple[str, ...],
    extend_trials: int | None,
    journal: str | None,
    loggers: tuple[str, ...],
    ray_address: str | None,
) -> None:
    """Launch the search in EXPERIMENT: a file, a shipped name (`evomerge ls`), or a mergekit-evolve file.

    Example: evomerge run quickstart --out runs/first --set budget.trials=50
    """
    from evomerge.cli.display import make_display
    from evomerge.experiments.schema import read_experiment

    trackers = known_loggers(loggers)
    if extend_trials is not None:
        from evomerge.experiments.run import resume

        if overrides or journal:
            what = "--set and --journal cannot change a run that has begun"
            raise ConfigError(Problem(what, "--extend-trials", "start a new run"))
        folder = out or Path(experiment)
        with resumable(folder), make_display() as display:
            ended = resume(folder, display, ray_address=ray_address, extend_trials=extend_trials, loggers=trackers)
    else:
        if journal is not None:
            overrides += (f"journal={json.dumps(journal)}",)
        config = read_experiment(experiment, overrides)
        config = config.model_copy(update={"loggers": list(dict.fromkeys([*config.loggers, *trackers]))})
        from evomerge.experiments.run import start

        folder = out or Path("runs") / config.name
        with resumable(folder), make_display() as display:
            ended = start(config, folder, display, ray_address=ray_address)
    conclude(ended)
