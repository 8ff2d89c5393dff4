"""``evomerge ls``, ``cat`` and ``cp``: the shipped content."""

from __future__ import annotations

from pathlib import Path

import click

from evomerge import library
from evomerge.errors import ConfigError, Problem, UnknownNameError


@click.command()
@click.argument("kind", type=click.Choice(library.KINDS), required=False)
def ls(kind: library.Kind | None) -> None:
    """List experiments, recipes, search spaces and tasks by name, with their first line."""
    for each in (kind,) if kind else library.KINDS:
        click.secho(each, bold=True)
        for entry in library.entries(each):
            origin = "" if entry.origin == "evomerge" else f"  [{entry.origin}]"
            click.echo(f"  {entry.name:<32} {first_comment(entry.path)}{origin}")


@click.command()
@click.argument("name")
def cat(name: str) -> None:
    """Print the shipped file NAME (or KIND/NAME, where a name is used twice)."""
    click.echo(find(name).path.read_text(encoding="utf-8"), nl=False)


@click.command()
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path))
def cp(name: str, destination: Path) -> None:
    """Copy the shipped file NAME to DESTINATION, to edit it there."""
    entry = find(name)
    target = destination / entry.path.name if destination.is_dir() else destination
    if target.exists():
        raise ConfigError(Problem("the file exists already", str(target), "name another, or remove it"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(entry.path.read_bytes())
    except OSError as error:
        raise ConfigError(Problem(f"cannot write there: {error.strerror}", str(target))) from error
    click.echo(str(target))


COMMANDS = {"ls": ls, "cat": cat, "cp": cp}


def find(name: str) -> library.Entry:
    """Return the entry called ``name`` or ``KIND/name``; experiments come first.

    Raises:
        UnknownNameError: there is none.
    """
    order: tuple[library.Kind, ...] = ("experiments", "recipes", "search_spaces", "fitness")
    named = [kind for kind in order if name.startswith(f"{kind}/")]
    for kind in named or order:
        try:
            return library.find(kind, name)
        except UnknownNameError:
            continue
    valid = [entry.name for kind in named or order for entry in library.entries(kind)]
    raise UnknownNameError("file", name, valid)


def first_comment(path: Path) -> str:
    """Return the first line of a file's opening comment: what it is."""
    with path.open(encoding="utf-8") as file:
        line = file.readline().strip()
    return line.lstrip("# ").rstrip() if line.startswith("#") else ""
