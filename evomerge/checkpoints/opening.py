"""From a model reference to an opened checkpoint, with its adapter if it names one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from evomerge.checkpoints.adapters import AdapterView, is_adapter, read_adapter_config
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.resolve import existing_folder, resolve
from evomerge.errors import CheckpointError


def open_checkpoint(
    reference: str,
    *,
    offline: bool = False,
    base_folder: Path | None = None,
    allow_pickle: Collection[str] = (),
) -> Checkpoint:
    """Open the model that ``reference`` names; headers are read, weights are not.

    Args:
        reference: a model as `resolve` finds it, ``MODEL+ADAPTER``, or an adapter alone, whose base is then the one
            that its config names.
        offline: look for Hub ids in the local cache only.
        base_folder: what relative folders are relative to, before the current folder.
        allow_pickle: models and adapters, as written in the reference (whole, or one side of its ``+``), whose weights
            may be pickled.

    Raises:
        CheckpointError: something cannot be found or read; says what was tried.
    """

    def find(name: str) -> tuple[Path, bool]:
        allowed = name in allow_pickle or reference in allow_pickle
        return resolve(name, offline=offline, base_folder=base_folder, allow_pickle=allowed), allowed

    model, plus, adapter = reference.partition("+")
    if not plus or existing_folder(reference, base_folder) is not None:
        folder, allowed = find(reference)
        if not is_adapter(folder):
            return Checkpoint(folder, reference, allow_pickle=allowed)
        base = _base_of(reference, folder)
        try:
            source = open_checkpoint(base, offline=offline, base_folder=base_folder, allow_pickle=allow_pickle)
        except CheckpointError as error:
            raise CheckpointError(
                f"{reference}: an adapter of {base!r} (base_model_name_or_path in adapter_config.json), which cannot "
                f"be opened; name the base too, as BASE+{reference}: {error}"
            ) from error
        return AdapterView(source, folder, reference, allow_pickle=allowed)
    names = {*allow_pickle, model, adapter} if reference in allow_pickle else allow_pickle
    source = open_checkpoint(model, offline=offline, base_folder=base_folder, allow_pickle=names)
    folder, allowed = find(adapter)
    return AdapterView(source, folder, reference, allow_pickle=allowed)


def _base_of(reference: str, folder: Path) -> str:
    """Return the reference of the base that an adapter's config names."""
    config = read_adapter_config(folder)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base:
        raise CheckpointError(f"{reference}: a LoRA adapter that does not name its base; write BASE+{reference}")
    return f"{base}@{revision}" if revision and not Path(base).is_dir() else str(base)
