"""One model over several GPUs: whole layers on each, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import MergeError


def spread_over_gpus(model: Any) -> Any:
    """Lay a model's layers over all GPUs of this process, and make its forward pass go from one to the next.

    Raises:
        MergeError: it does not fit.
    """
    from accelerate import dispatch_model
    from accelerate.utils import get_balanced_memory

    memory = get_balanced_memory(model, no_split_module_classes=_whole(model), dtype=model.dtype)
    gpus = {device: room for device, room in memory.items() if device != "cpu"}
    return dispatch_model(model, device_map=device_map(model, gpus))


def device_map(model: Any, room: Mapping[int | str, int]) -> dict[str, int | str]:
    """Return module name → device, such that layers stay whole.

    Args:
        model: a model of transformers.
        room: bytes that it may take, by device.

    Raises:
        MergeError: it does not fit.
    """
    from accelerate import infer_auto_device_map

    found = infer_auto_device_map(
        model, max_memory=dict(room), no_split_module_classes=_whole(model), dtype=model.dtype
    )
    elsewhere = sorted(name for name, device in found.items() if device not in room)
    if elsewhere:
        raise MergeError(
            f"the model does not fit the worker's {len(room)} GPUs: {len(elsewhere)} modules are left over, first "
            f"{elsewhere[0]}; raise workers.devices_per_worker"
        )
    return dict(found)


def _whole(model: Any) -> list[str]:
    return sorted(getattr(model, "_no_split_modules", None) or [])
