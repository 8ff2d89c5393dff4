"""Finding batch sizes by running the longest items of a task in batches that grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from evomerge.fitness.batch_sizes import (
    Cost,
    Peak,
    Remembered,
    best_batch_size,
    free_memory,
    is_out_of_memory,
    model_key,
    room,
    timed,
)
from evomerge.fitness.language_model import FirstBatchDone, Resident

Respond = Callable[[], object]


def probe(
    resident: Resident, respond: Mapping[str, Respond], max_length: int | None, remembered: Remembered | None
) -> dict[str, int]:
    """Return the batch size of each task.

    Args:
        resident: a model of the size and dtype of those to come, on their device.
        respond: runs all items of a task on it, by task key.
        max_length: longest sequence in tokens.
        remembered: sizes found before; None looks for all anew.

    Raises:
        FitnessError: an error inside the model.
    """
    return {key: _batch_size(resident, key, run, max_length, remembered) for key, run in respond.items()}


def _batch_size(
    resident: Resident, key: str, respond: Respond, max_length: int | None, remembered: Remembered | None
) -> int:
    device = resident.model.device
    threads = f"cpu, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    identity: Sequence[str] = (model_key(resident.model), key, str(max_length), name)
    known = remembered.get(*identity) if remembered else None
    if known is not None:
        return known
    _first_batch(resident, respond, 1)  # what is done once, at a first use, must not count
    size = best_batch_size(lambda size: _first_batch(resident, respond, size), room(device))
    if remembered:
        remembered.put(size, *identity)
    return size


def _first_batch(resident: Resident, respond: Respond, size: int) -> Cost | None:
    """Return what the first batch costs (the longest sequences); None if there are not so many, or no room."""
    lm = resident.lm
    lm.use_batches_of(size)
    lm.only_first_batch = True
    try:
        with timed() as seconds, Peak(resident.model.device) as peak:
            try:
                respond()
            except FirstBatchDone as done:
                if done.args[0] < size:
                    return None
            took = seconds()
        return Cost(took, peak.num_bytes)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    finally:
        lm.only_first_batch = False
    free_memory()  # the error, which held on to the batch, is gone only here
    return None
