"""The workers of one session of a run, built when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from evomerge.experiments.preflight import Prepared
from evomerge.fitness import FitnessConfig
from evomerge.recipes import write_recipe
from evomerge.reports.progress import Display
from evomerge.workers import Placement, Pool, WorkerSpec, connect, may_grow, nodes, place
from evomerge.workers.states import WorkerState


class RunWorkers:
    """The pool, built when the first evaluation is needed: a run that only replays starts no worker.

    Args:
        prepared: the experiment's parts.
        display: told what happens to workers.
        ray_address: of the cluster; None for this machine.
        connected: called once Ray runs.

    Attributes:
        batch_sizes: by task, as the run began; None before they are known.
    """

    def __init__(
        self, prepared: Prepared, display: Display, ray_address: str | None, connected: Callable[[], None]
    ) -> None:
        self._prepared, self._display, self._address = prepared, display, ray_address
        self._connected = connected
        self._pool: Pool | None = None
        self._placement: Placement | None = None
        self.batch_sizes: Mapping[str, int] | None = None

    @property
    def placement(self) -> Placement:
        """Where they run; asking starts Ray."""
        if self._placement is None:
            self._connect()
            self._placement = self._place()
        return self._placement

    def pool(self) -> Pool:
        """Return the pool, started if need be."""
        if self._pool is None:
            self._pool = self._built()
            self._connected()
        return self._pool

    @property
    def count(self) -> int:
        """How many there are by now."""
        return self._pool.size if self._pool else 0

    def states(self) -> tuple[WorkerState, ...]:
        """Return what each is doing."""
        return self._pool.states() if self._pool else ()

    def close(self) -> None:
        """Stop them."""
        if self._pool:
            self._pool.close()

    def _connect(self) -> None:
        try:
            connect(self._address, self._display.note)
        except SystemExit as ended:  # from Ray's own handler of SIGTERM, which `connected` replaces
            raise KeyboardInterrupt from ended
        finally:
            self._connected()

    def _place(self) -> Placement:
        config, trials = self._prepared.experiment.workers, self._prepared.experiment.budget.trials
        return place(
            nodes(),
            config.devices,
            count=config.count,
            threads=config.threads,
            trials=trials,
            devices_per_worker=config.devices_per_worker,
            growing=may_grow(),
        )

    def _built(self) -> Pool:
        experiment, placement = self._prepared.experiment, self.placement
        config = experiment.workers
        of = "" if placement.device == "cpu" else f", {placement.devices_per_worker:g} GPUs each"
        workers, threads = (
            f"{count} {word}" + "s" * (count != 1)
            for count, word in ((placement.workers, f"{placement.device} worker"), (placement.threads, "thread"))
        )
        self._display.note(f"starting {workers} ({threads} each{of})")
        spec = WorkerSpec(
            references=experiment.references,
            fitness=experiment.fitness.model_dump(mode="json"),
            dtype=self._prepared.dtype,
            donor=self._prepared.donor,
            device=placement.device,
            threads=placement.threads,
            like=write_recipe(self._prepared.like),
            devices=placement.devices_per_worker,
            overlap=placement.device == "cuda" if config.overlap is None else config.overlap,
            batch=config.batch,
            members_bytes=int(config.members_gb * 10**9),
        )
        pool = Pool(
            spec,
            placement.workers,
            retries=config.retries,
            report=self._display.note,
            time_limit=config.time_limit,
            room=(lambda: self._place().workers) if config.count is None and may_grow() else None,
        )
        if self.batch_sizes is None:
            self.batch_sizes = self._find_batch_sizes(pool, experiment.fitness)
        pool.batch_sizes = self.batch_sizes
        return pool

    def _find_batch_sizes(self, pool: Pool, config: FitnessConfig) -> dict[str, int]:
        if config.batch_size != "auto":
            return {}
        searched, confirmed = (self._prepared.fitness.items(split) for split in ("search", "confirmation"))
        found = pool.find_batch_sizes({task: [*searched[task], *confirmed[task]] for task in searched})
        self._display.note("batch sizes: " + ", ".join(f"{size} {task}" for task, size in found.items()))
        return found


@contextmanager
def open_workers(
    prepared: Prepared, display: Display, ray_address: str | None, connected: Callable[[], None]
) -> Iterator[RunWorkers]:
    """Give workers that are stopped at the end, however that comes about."""
    workers = RunWorkers(prepared, display, ray_address, connected)
    try:
        yield workers
    finally:
        workers.close()
