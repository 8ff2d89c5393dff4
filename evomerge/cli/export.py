"""``evomerge export``: the model folder, and the Hub."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option(
    "--trial",
    type=click.IntRange(min=0),
    metavar="N",
    help="Export trial N, or the confirmed prediction N, instead of the pick.",
)
@click.option(
    "--pick",
    metavar="RULE",
    help="Pick anew among the confirmed: best-mean, knee, objective:NAME, prefer:NAME=WEIGHT,…, trial:N.",
)
@click.option("--push", metavar="REPO", help="Upload to the Hub repository NAMESPACE/NAME; re-run to resume an upload.")
@click.option("--public", is_flag=True, help="Make the repository public; it is private otherwise.")
@click.option("--dry-run", is_flag=True, help="Print the model card and write nothing.")
def command(
    run: Path,
    out: Path | None,
    trial: int | None,
    pick: str | None,
    push: str | None,
    public: bool,
    dry_run: bool,
) -> None:
    """Write the winner of RUN to the folder OUT (default RUN/model), check it, and push it if asked.

    The folder loads with transformers alone. It is loaded again and asked the same items; its responses must equal
    those that it gave in the run.
    """
    from evomerge.experiments.export_run import choose, describe, export, label
    from evomerge.experiments.run_folder import RunFolder
    from evomerge.export.card import render_card
    from evomerge.export.hub import check_repo_id
    from evomerge.export.hub import push as upload

    if push:
        check_repo_id(push)
    from transformers.utils import logging

    logging.disable_progress_bar()
    number = choose(run, trial=trial, pick=pick)
    if dry_run:
        click.echo(render_card(describe(run, number)[2]))
        return
    folder = out or RunFolder(run).model
    if push and is_export_of(folder, run, number):
        click.echo(f"{folder} holds {label(run, number)} already")
    else:
        exported = export(run, out, number, click.echo)
        checked = exported.responses_checked
        kind = exported.label.split()[0]
        said = f"{checked} responses equal the {kind}'s" if checked else "no stored responses to compare it with"
        click.echo(f"{exported.folder}: {exported.label}, {said}")
    if push:
        click.echo(upload(folder, push, private=not public))


def is_export_of(folder: Path, run: Path, number: int) -> bool:
    """Whether ``folder`` is a finished export of that trial (an upload is being resumed)."""
    from evomerge.experiments.export_run import describe
    from evomerge.recipes import NamedRecipe, read_recipes, write_recipes

    written = folder / "recipe.yaml"
    _, recipe, card = describe(run, number)
    stages = card.stages or (NamedRecipe(recipe),)
    return written.is_file() and write_recipes(read_recipes(written)) == write_recipes(stages)
