"""What a run will take, before it is started: evaluations, memory, disk, time; and why it would be refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from evomerge.checkpoints.skeleton import load_config
from evomerge.errors import CheckpointError, ConfigError, EvomergeError, Problem
from evomerge.experiments import hybrid, nested
from evomerge.experiments.checks import check, refusals
from evomerge.experiments.disk import disk_of
from evomerge.experiments.durations import time_of
from evomerge.experiments.fetching import to_fetch
from evomerge.experiments.machine import gpu_bytes, memory_bytes
from evomerge.experiments.memory import memory_of
from evomerge.experiments.preflight import Prepared
from evomerge.experiments.probe import Probed, probe
from evomerge.experiments.run_workers import open_workers
from evomerge.experiments.schema import ExperimentConfig
from evomerge.experiments.stage_plans import stage_plans
from evomerge.fitness.lengths import Lengths
from evomerge.merging.tokenizer_files import merged_tokenizer
from evomerge.reports import wording
from evomerge.reports.planned import DiskPlan, MemoryPlan, Plan, WorkersPlan
from evomerge.reports.progress import Display
from evomerge.workers import Placement, nodes


def plan(
    experiment: ExperimentConfig,
    out: Path,
    display: Display,
    *,
    ray_address: str | None = None,
    probing: bool = True,
    fetching: bool = False,
) -> Plan:
    """Return what a run of an experiment will take, and every reason for which it would be refused.

    Args:
        experiment: as it was read.
        out: the run folder to be; nothing is written there.
        display: told what happens meanwhile.
        ray_address: of the cluster; None for this machine.
        probing: evaluate a few merges, to tell the time.
        fetching: fetch parents that are not on this machine; else only what there is to fetch is told.
    """
    problems = refusals(experiment, out)
    absent = {} if fetching else to_fetch(experiment.references.values())
    if absent:
        problems += _room_for(sum(absent.values()))
        return Plan(experiment.name, fetched=absent, problems=tuple(problems))
    try:
        checked = check(experiment, out=out)
    except ConfigError as error:
        return Plan(experiment.name, problems=(*problems, *error.problems))
    warnings = tuple(dict.fromkeys(warning for prepared in checked for warning in prepared.warnings))
    lengths = _lengths(checked[0])
    stages = stage_plans(experiment, checked, lengths)
    workers, probes = None, []
    try:
        placement, machines = _placement(checked[0], display, ray_address)
        workers = WorkersPlan(
            placement.workers, placement.device, placement.threads, placement.devices_per_worker, machines
        )
        if probing:
            display.note("probing: a few merges are evaluated in one worker")
            probes = [probe(prepared, placement, display, ray_address) for prepared in checked]
    except EvomergeError as error:
        problems.append(Problem(str(error), experiment.where(("workers",)) if workers is None else ""))
    memory = _memory(checked, lengths, workers, probes)
    disk = disk_of(stages, memory, out, probes, _models_of_stages(experiment))
    problems += _too_little(memory, disk, workers)
    time = time_of(stages, workers, probes) if workers and probes else None
    return Plan(experiment.name, stages, workers, memory, disk, time, {}, tuple(dict.fromkeys(problems)), warnings)


def _memory(
    checked: Sequence[Prepared], lengths: Mapping[str, Lengths], workers: WorkersPlan | None, probes: Sequence[Probed]
) -> MemoryPlan:
    """Return what the stage takes that takes most."""
    device = "cpu" if workers is None else workers.device
    gpus = gpu_bytes() if device == "cuda" else ()
    found = [
        memory_of(
            prepared,
            lengths,
            device=device,
            batch=probes[number].batch_size if probes else None,
            machine=memory_bytes(),
            gpu=min(gpus) if gpus else None,
            measured=probes[number].memory if probes else None,
        )
        for number, prepared in enumerate(checked)
    ]
    return max(found, key=lambda memory: memory.on_device)


def _models_of_stages(experiment: ExperimentConfig) -> int:
    """Return how many merged models earlier stages leave for later ones."""
    if nested.is_nested(experiment):
        return len(experiment.parents) - 2
    return int(hybrid.space_of(experiment) is not None)


def _lengths(prepared: Prepared) -> Mapping[str, Lengths]:
    """Return how long the inputs are, by task; empty if there is no tokenizer to tell."""
    seen = prepared.parents.viewed(prepared.like)
    if seen[prepared.donor].is_plain:
        return {}
    tokenizer = merged_tokenizer(prepared.like, seen.checkpoints)
    donor = seen[prepared.donor]
    try:
        text = load_config(donor.folder, donor.name, donor.config).get_text_config(decoder=True)
        limit = int(getattr(text, "max_position_embeddings", None) or 2048)
    except CheckpointError:
        limit = 2048
    return prepared.fitness.lengths(tokenizer, limit)


def _placement(prepared: Prepared, display: Display, ray_address: str | None) -> tuple[Placement, int]:
    """Return where the workers would run, and on how many machines.

    Raises:
        WorkerError: more was asked for than there is.
    """
    with open_workers(prepared, display, ray_address, lambda: None) as workers:
        placement = workers.placement
        return placement, len(nodes())


def _room_for(size: int) -> list[Problem]:
    """Return a problem if the Hub's cache has no room for what is to be fetched."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(path for path in [cache, *cache.parents] if path.exists())).free
    if free >= size:
        return []
    what = f"{wording.size(size)} are to be fetched, but only {wording.size(free)} are free"
    return [Problem(what, str(cache), "free some space, or set HF_HOME to a folder on another disk")]


def _too_little(memory: MemoryPlan, disk: DiskPlan, workers: WorkersPlan | None) -> list[Problem]:
    """Return what the machine has too little of."""
    problems = []
    if workers is not None and workers.nodes == 1:
        needed = workers.count * memory.worker
        if needed > memory.machine:
            what = (
                f"{workers.count} workers need {wording.size(needed)} of memory, but this machine has "
                f"{wording.size(memory.machine)}"
            )
            most = memory.machine // memory.worker
            hint = f"set workers.count to {most} at most" if most else "use a machine with more, or smaller parents"
            problems.append(Problem(what, "", hint))
        if memory.device is not None:
            each = memory.on_device * (1 / workers.devices_each if workers.devices_each < 1 else 1)
            have = memory.device * max(1, workers.devices_each)
            if each > have:
                what = f"a GPU's workers need {wording.size(each)}, but it has {wording.size(memory.device)}"
                hint = "set a smaller fitness.batch_size, or more workers.devices_per_worker"
                problems.append(Problem(what, "", hint))
    if disk.run > disk.free:
        what = f"the run may write {wording.size(disk.run)}, but only {wording.size(disk.free)} are free"
        hint = "free some space, or name a folder on another disk with --out"
        problems.append(Problem(what, disk.folder, hint))
    return problems
