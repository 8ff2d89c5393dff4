"""What a trial costs a run's record of its front, beside computing everything from scratch.

    python benchmarks/fronts.py [--trials 50000] [--objectives 5]

Two streams of trials: uniform in the cube, where the front grows to some hundreds, and near a sphere, where nearly
every trial stays on it. Prints milliseconds of CPU time a trial: of the archive (front and hypervolume), of the meter
(spread and IGD+ too), and of moocore's front and hypervolume of all trials so far, at a few places.
"""

from __future__ import annotations

import argparse
import time

import moocore
import numpy as np

from evomerge.fronts import FrontArchive, FrontMeter

PLACES = 5
PATIENCE = 60.0  # seconds; from scratch is not tried on larger sets once one took longer than this


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trials", type=int, default=50_000)
    arguments.add_argument("--objectives", type=int, default=5)
    options = arguments.parse_args()
    draws = np.random.default_rng(0)
    for name, stream in (
        ("cube", draws.random((options.trials, options.objectives))),
        ("sphere", sphere(draws, options.trials, options.objectives)),
    ):
        report(name, stream, sphere(draws, 1000, options.objectives))


def sphere(draws: np.random.Generator, trials: int, objectives: int) -> np.ndarray:
    """Return points (trials, objectives) of the positive part of the unit sphere, drawn in by up to a thousandth."""
    points = np.abs(draws.normal(size=(trials, objectives)))
    radii = 1 - 0.001 * draws.random((trials, 1))
    return points / np.linalg.norm(points, axis=1, keepdims=True) * radii


def report(name: str, stream: np.ndarray, known: np.ndarray) -> None:
    """Print what one stream costs."""
    corner = np.zeros(stream.shape[1])
    archive, meter = FrontArchive(corner), FrontMeter(corner, known)
    kept, measured = timed(archive, stream), timed(meter, stream)
    print(f"{name}: {len(stream)} trials, {stream.shape[1]} objectives, {len(archive)} on the front")
    for label, times in (("front and hypervolume", kept), ("spread and IGD+ too", measured)):
        print(f"  {label:<24} {times.mean():8.3f} ms a trial, slowest {times.max():8.1f} ms")
    for count in np.linspace(0, len(stream), PLACES + 1, dtype=int)[1:]:
        began = time.process_time()
        front = moocore.filter_dominated(stream[:count], maximise=True)
        found = time.process_time()
        volume = moocore.hypervolume(-front, ref=corner)
        ended = time.process_time()
        print(
            f"  from scratch at {count:>6}: front {1000 * (found - began):9.1f} ms, "
            f"hypervolume {1000 * (ended - found):11.1f} ms of {len(front)} trials"
        )
        if ended - began > PATIENCE:
            break
    if count == len(stream):
        print(f"  hypervolume {archive.hypervolume:.12f}, from scratch {volume:.12f}")


def timed(record: FrontArchive | FrontMeter, stream: np.ndarray) -> np.ndarray:
    """Return the milliseconds that each trial took."""
    times = []
    for gains in stream:
        began = time.process_time()
        record.add(gains)
        times.append(time.process_time() - began)
    return 1000 * np.array(times)


if __name__ == "__main__":
    main()
