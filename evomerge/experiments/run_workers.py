"""The workers of one session of a run, built when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from evomerge.experiments.preflight import Prepared
from evomerge.recipes import write_recipe
from evomerge.reports.progress import Display
from evomerge.workers import Placement, Pool, WorkerSpec, connect, place


class RunWorkers:
    """The pool, built when the first evaluation is needed: a run that only replays starts no worker.

    Args:
        connected: called once Ray runs.
    """

    def __init__(
        self, prepared: Prepared, display: Display, ray_address: str | None, connected: Callable[[], None]
    ) -> None:
        self._prepared, self._display, self._address = prepared, display, ray_address
        self._connected = connected
        self._pool: Pool | None = None
        self._placement: Placement | None = None

    @property
    def placement(self) -> Placement:
        """Where they run; asking starts Ray."""
        if self._placement is None:
            workers = self._prepared.experiment.workers
            connect(self._address)
            self._connected()
            trials = self._prepared.experiment.budget.trials
            self._placement = place(workers.devices, workers.count, workers.threads, trials)
        return self._placement

    def pool(self) -> Pool:
        """Return the pool, started if need be."""
        if self._pool is None:
            experiment, placement = self._prepared.experiment, self.placement
            self._display.note(
                f"starting {placement.workers} {placement.device} workers ({placement.threads} threads each)"
            )
            spec = WorkerSpec(
                references=experiment.references,
                fitness=experiment.fitness.model_dump(mode="json"),
                dtype=self._prepared.dtype,
                donor=self._prepared.donor,
                device=placement.device,
                threads=placement.threads,
                like=write_recipe(self._prepared.like),
            )
            self._pool = Pool(spec, placement.workers, retries=experiment.workers.retries, report=self._display.note)
            self._connected()
        return self._pool

    @property
    def count(self) -> int:
        """How many there are by now."""
        return self._pool.size if self._pool else 0

    def close(self) -> None:
        """Stop them."""
        if self._pool:
            self._pool.close()


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
