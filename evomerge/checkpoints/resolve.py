"""From a model reference to a folder on this machine: a folder, a model of the zoo, or a Hub id.

The Hub's client is imported only when a reference needs it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from evomerge.errors import CheckpointError, suggest
from evomerge.recipes import trial_of

ZOO_VERSION = "1"  # raised when the zoo's models change, so that old caches are not taken for new ones
DIGITS_VERSION = "1"  # the same of its networks for digits
DOWNLOADED = (
    *("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken", "tokenizer*"),
    *("README.md", "LICEN*"),  # a merge's licence is read from them
)
PICKLED = ("pytorch_model*.bin", "adapter_model.bin")
NOT_DOWNLOADED = ("original/*", "consolidated*", "onnx/*", "*.gguf")
DIGITS = "zoo/digits/"  # before the name of a network for digits
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def cache_folder() -> Path:
    """Return where evomerge keeps what it can make again: ``$EVOMERGE_CACHE``, or in the user's cache."""
    if chosen := os.environ.get("EVOMERGE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "evomerge"


def zoo_folder() -> Path:
    """Return where the zoo's models of this version lie, built or not."""
    return cache_folder() / "zoo" / ZOO_VERSION


def digits_folder() -> Path:
    """Return where the zoo's networks for digits of this version lie, built or not."""
    return cache_folder() / "zoo" / f"digits-{DIGITS_VERSION}"


def resolve(
    reference: str, *, offline: bool = False, base_folder: Path | None = None, allow_pickle: bool = False
) -> Path:
    """Return the folder of the model that ``reference`` names; downloads it when it is a Hub id.

    Tried in this order: an existing folder, a model of the zoo (``zoo/base``, ``zoo/digits/low``), a Hub id
    (``owner/name`` or ``owner/name@revision``). Of ``MODEL+ADAPTER`` it is the folder of the model, which has config
    and tokenizer.

    Args:
        offline: look for Hub ids in the local cache only (``HF_HUB_OFFLINE=1`` does the same).
        base_folder: what relative folders are relative to (an experiment file's folder), before the current
            folder.
        allow_pickle: download pickled weights of a Hub id that has no safetensors.

    Raises:
        CheckpointError: nothing was found; says what was tried and the nearest names.
    """
    if (folder := existing_folder(reference, base_folder)) is not None:
        return folder
    if trial_of(reference) is not None:
        hint = (
            "`evomerge recipe RUN` prints it with the trials that it is made of, `evomerge export RUN` makes the model"
        )
        raise CheckpointError(f"{reference!r}: a trial, which means something inside its run alone; {hint}")
    if "+" in reference:
        model = reference.partition("+")[0]
        return resolve(model, offline=offline, base_folder=base_folder, allow_pickle=allow_pickle)
    if reference.startswith("zoo/"):
        return _zoo_model(reference)
    name, _, revision = reference.partition("@")
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"{reference!r}: no such folder; {_neighbours(reference, base_folder)}")
    folder = _download(reference, name, revision or None, offline)
    if allow_pickle and not any(folder.glob("*.safetensors")):
        folder = _download(reference, name, revision or None, offline, (*DOWNLOADED, *PICKLED))
    return folder


def existing_folder(reference: str, base_folder: Path | None) -> Path | None:
    """Return the absolute path of the folder that ``reference`` is, None if it is none."""
    path = Path(reference).expanduser()
    candidates = [base_folder / path] if base_folder is not None else []
    return next((p.absolute() for p in (*candidates, path) if p.is_dir()), None)


def _neighbours(reference: str, base_folder: Path | None) -> str:
    path = (base_folder or Path()) / Path(reference).expanduser()
    if not path.parent.is_dir():
        return f"nor is there a folder {path.parent}"
    names = [p.name for p in path.parent.iterdir() if p.is_dir()]
    return f"in {path.parent.absolute()}: {suggest(path.name, names)}"


def _zoo_model(reference: str) -> Path:
    if reference.startswith(DIGITS):
        prefix, folder, command = DIGITS, digits_folder(), "evomerge zoo build digits"
    else:
        prefix, folder, command = "zoo/", zoo_folder(), "evomerge zoo build"
    places = ("*/config.json", "*/*.safetensors", "pool/*/*.safetensors")
    models = {file.parent.relative_to(folder).as_posix() for place in places for file in folder.glob(place)}
    built = sorted(f"{prefix}{model}" for model in models)
    if not built:
        raise CheckpointError(f"{reference!r}: the zoo is not built (no models in {folder}); run `{command}`")
    if reference.startswith("zoo/pool/") and not (folder / "pool").is_dir():
        raise CheckpointError(f"{reference!r}: the zoo's pool is not built; run `evomerge zoo build --pool`")
    if reference not in built:
        raise CheckpointError(f"{reference!r}: no such model in the zoo ({folder}); {suggest(reference, built)}")
    return folder / reference.removeprefix(prefix)


def _download(
    reference: str, name: str, revision: str | None, offline: bool, patterns: tuple[str, ...] = DOWNLOADED
) -> Path:
    from huggingface_hub import constants, snapshot_download

    offline = offline or constants.HF_HUB_OFFLINE
    try:
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(NOT_DOWNLOADED),
            local_files_only=offline,
            etag_timeout=5,
        )
    # The client raises its own, the standard library's and its HTTP library's errors.
    except Exception as error:
        where = "the local Hub cache (offline)" if offline else f"the Hub ({constants.ENDPOINT})"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{reference!r}: tried as a folder and in {where}, without success: {reason}\n"
            "    → check the spelling; for a private or gated model log in with `hf auth login`"
        ) from error
    return Path(path)
