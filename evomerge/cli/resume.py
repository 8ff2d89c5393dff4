"""``evomerge resume``: go on with a run."""

from __future__ import annotations

from pathlib import Path

import click

from evomerge.cli.outcome import conclude, known_loggers, resumable


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--logger", "loggers", multiple=True, metavar="NAME", help="Tell an experiment tracker from now on; repeatable."
)
@click.option("--ray-address", help="Ray cluster: `auto`, HOST:PORT or `local`. [default: $RAY_ADDRESS, or local]")
def command(run: Path, loggers: tuple[str, ...], ray_address: str | None) -> None:
    """Go on with RUN exactly where it stopped, however it stopped."""
    from evomerge.cli.display import make_display
    from evomerge.experiments.run import resume

    trackers = known_loggers(loggers)
    with resumable(run), make_display() as display:
        ended = resume(run, display, ray_address=ray_address, loggers=trackers)
    conclude(ended)
