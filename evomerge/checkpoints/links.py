"""Symbolic links in a model folder: a file that only seems to lie there is not read."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import CheckpointError


def refuse_links_out(folder: Path) -> None:
    """Check that no file of a model folder is a link to somewhere else.

    A downloaded folder could otherwise have any file of this machine read and copied into what is exported. The
    folder itself may be a link, and so may the files of the Hub's cache, where ``snapshots/REVISION`` holds links
    into ``blobs``.

    Raises:
        CheckpointError: a file links out of the folder; names it and its target.
    """
    inside = folder.resolve()
    blobs = inside.parent.parent / "blobs" if inside.parent.name == "snapshots" else None
    for path in sorted(path for path in (*folder.iterdir(), *folder.glob("*/*")) if path.is_symlink()):
        target = path.resolve()
        if target.is_relative_to(inside) or (blobs is not None and target.is_relative_to(blobs)):
            continue
        raise CheckpointError(f"{path}: a link out of its folder, to {target}; copy the file here if it is meant")
