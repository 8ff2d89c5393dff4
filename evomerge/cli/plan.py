"""``evomerge plan``: what a run would take, and why it would be refused."""

from __future__ import annotations

from pathlib import Path

import click

from evomerge.errors import ConfigError


@click.command()
@click.argument("experiment")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder to be. [default: runs/NAME]")
@click.option(
    "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a field of the file; repeatable."
)
@click.option("--no-probe", is_flag=True, help="Evaluate nothing: without the time.")
@click.option("--fetch", is_flag=True, help="Fetch parents that are not here yet, to plan with them.")
@click.option("--ray-address", help="Plan for the Ray cluster at this address.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON: bytes and seconds.")
def command(
    experiment: str,
    out: Path | None,
    overrides: tuple[str, ...],
    no_probe: bool,
    fetch: bool,
    ray_address: str | None,
    as_json: bool,
) -> None:
    """Say what the search in EXPERIMENT would take: evaluations, memory, disk, time; and all reasons to refuse it.

    Nothing is written but the cache. A probe evaluates a few merges in one worker; --no-probe leaves it out. The exit
    status is 2 if the run would be refused.

    Example: evomerge plan quickstart --set budget.trials=50
    """
    from dataclasses import asdict

    from rich.console import Console

    from evomerge.cli.display import PlainDisplay
    from evomerge.experiments.plan import plan
    from evomerge.experiments.schema import read_experiment
    from evomerge.reports.plan_table import plan_table

    config = read_experiment(experiment, overrides)
    display = PlainDisplay(Console(stderr=True))
    folder = out or Path("runs") / config.name
    planned = plan(config, folder, display, ray_address=ray_address, probing=not no_probe, fetching=fetch)
    if as_json:
        import json

        click.echo(json.dumps(asdict(planned), indent=2))
    else:
        Console().print(plan_table(planned))
        for warning in planned.warnings:
            click.secho(f"warning: {warning}", fg="yellow")
    if planned.problems:
        raise ConfigError(planned.problems)
