"""Names to content files: the only module that knows where search spaces, tasks, recipes and experiments lie.

A name resolves, in this order, to: an explicit path; a file of the user's project folder (``./recipes/x.yaml``);
a file in a folder of ``$EVOMERGE_LIBRARY``; the library shipped in the wheel; in a checkout, the repository root.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from evomerge.errors import UnknownNameError

Kind = Literal["search_spaces", "fitness", "recipes", "experiments"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SUFFIXES = (".yaml", ".yml")
SHIPPED = "_library"  # the folder of the package that holds the content in a wheel


@dataclass(frozen=True)
class Entry:
    """One content file: its kind, its name (path without suffix), where it lies and who supplied it."""

    kind: Kind
    name: str
    path: Path
    origin: str


def find(kind: Kind, name: str) -> Entry:
    """Return the entry that ``name`` means: an explicit path to a file, or a name in the library.

    ``x`` finds ``folder/x`` too, if only one folder has it.

    Raises:
        UnknownNameError: nothing has that name; the message lists the nearest ones and the folders searched.
    """
    path = Path(name).expanduser()
    if path.suffix in SUFFIXES and path.is_file():
        return Entry(kind, path.stem, path, "path")
    entries = {entry.name: entry for entry in reversed(list(_all(kind)))}
    wanted = name.removesuffix(".yaml").removesuffix(".yml").removeprefix(f"{kind}/")
    if wanted in entries:
        return entries[wanted]
    in_folders = [entry for entry in entries.values() if entry.name.endswith(f"/{wanted}")]
    if len(in_folders) == 1:
        return in_folders[0]
    searched = ", ".join(str(folder / kind) for folder, _ in _roots())
    label = {"search_spaces": "search space", "fitness": "task"}.get(kind, kind.rstrip("s"))
    raise UnknownNameError(label, name, entries, searched)


def entries(kind: Kind) -> list[Entry]:
    """Return every entry of ``kind``, sorted by name; where two share a name, the one that ``find`` returns."""
    unique = {entry.name: entry for entry in reversed(list(_all(kind)))}
    return [unique[name] for name in sorted(unique)]


def folders(kind: Kind) -> list[Path]:
    """Return the existing folders that hold content of ``kind``, the first to win first."""
    return [folder / kind for folder, _ in _roots() if (folder / kind).is_dir()]


def _all(kind: Kind) -> Iterator[Entry]:
    for root, origin in _roots():
        folder = root / kind
        for path in sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES):
            yield Entry(kind, path.relative_to(folder).with_suffix("").as_posix(), path, origin)


def _roots() -> list[tuple[Path, str]]:
    shipped = _shipped()
    named = [(Path.cwd(), "project")]
    named += [(Path(p), "EVOMERGE_LIBRARY") for p in os.environ.get("EVOMERGE_LIBRARY", "").split(os.pathsep) if p]
    return [(root, origin) for root, origin in named if root != shipped] + [(shipped, "evomerge")]


@cache
def _shipped() -> Path:
    package = Path(__file__).parent
    checkout = package.parent
    if _is_our_checkout(checkout):
        return checkout
    return package / SHIPPED


def _is_our_checkout(folder: Path) -> bool:
    """Whether ``folder`` is evomerge's repository (beside an installed package lies ``site-packages``)."""
    project = folder / "pyproject.toml"
    if not project.is_file():
        return False
    return tomllib.loads(project.read_text()).get("project", {}).get("name") == "evomerge"
