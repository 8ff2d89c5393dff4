"""``evomerge resume``: go on with a run."""

from __future__ import annotations

from pathlib import Path

import click

from evomerge.cli.outcome import conclude, resumable


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--ray-address", help="Use the Ray cluster at this address (`auto`, `ray://host:10001`).")
def command(run: Path, ray_address: str | None) -> None:
    """Go on with RUN exactly where it stopped, however it stopped."""
    from evomerge.cli.display import make_display
    from evomerge.experiments.run import resume

    with resumable(run), make_display() as display:
        ended = resume(run, display, ray_address=ray_address)
    conclude(ended)
