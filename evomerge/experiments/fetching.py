"""Which parents are not on this machine yet, and how much there is to fetch."""

from __future__ import annotations

from collections.abc import Iterable

from evomerge.checkpoints.resolve import DOWNLOADED, NOT_DOWNLOADED, existing_folder, resolve
from evomerge.errors import CheckpointError

TIMEOUT = 10.0  # seconds that the Hub has to answer


def to_fetch(references: Iterable[str]) -> dict[str, int]:
    """Return reference → bytes of those that the Hub has and this machine has not.

    What the Hub does not have either, or cannot be asked for, is left out: opening it says why.
    """
    found = {}
    for reference in dict.fromkeys(part for name in references for part in _parts(name)):
        if reference.startswith("zoo/") or existing_folder(reference, None) is not None:
            continue
        try:
            resolve(reference, offline=True)
        except CheckpointError:
            size = _size(reference)
            if size is not None:
                found[reference] = size
    return found


def _parts(reference: str) -> list[str]:
    """Return the model and the adapter of ``MODEL+ADAPTER``."""
    return [reference] if existing_folder(reference, None) is not None else reference.split("+")


def _size(reference: str) -> int | None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import filter_repo_objects

    if constants.HF_HUB_OFFLINE:
        return None
    name, _, revision = reference.partition("@")
    try:
        info = HfApi().model_info(name, revision=revision or None, files_metadata=True, timeout=TIMEOUT)
    except Exception:  # the client raises its own, the standard library's and its HTTP library's errors
        return None
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    wanted = filter_repo_objects(sizes, allow_patterns=list(DOWNLOADED), ignore_patterns=list(NOT_DOWNLOADED))
    return sum(sizes[name] for name in wanted)
