"""Chaos: runs under faults at random instants, each compared with the undisturbed one.

    python benchmarks/chaos.py [--runs 50] [--seed 0] [--faults 3]

Each run suffers up to FAULTS of: driver killed (SIGKILL) or stopped (SIGTERM), worker killed, worker hanging, exception
in the fitness, journal torn in its last line, disk full (where a small file system may be mounted). After each session
that ended early it is resumed. Its trials, front and confirmation must equal those of the undisturbed run, and it must
have evaluated no more than that one did and what was in flight when a fault struck.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.testing.chaos import FAULTS, Scene, disturbed, undisturbed

DISK = "16m"  # a report takes 5 MB


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=50)
    arguments.add_argument("--faults", type=int, default=3, help="the most of one run")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="evomerge-chaos-") as name:
        folder = Path(name)
        expected, fewest, seconds = undisturbed(Scene(folder / "undisturbed"))
        print(f"undisturbed: {fewest} evaluations in {seconds:.0f} s", flush=True)
        struck, wasted, failures = Counter[str](), 0, 0
        for number in range(options.runs):
            draw = random.Random(f"{options.seed} {number}")
            faults = [draw.choice(list(FAULTS)) for _ in range(draw.randint(1, options.faults))]
            began = time.monotonic()
            with small_disk(folder / f"disk-{number}") as disk:
                if disk is None:
                    faults = [fault for fault in faults if fault != "disk full"] or ["driver killed"]
                scene = Scene(folder / f"run-{number}", disk=disk)
                verdict = "equal"
                try:
                    disturbed(scene, faults, draw, fewest)
                    more = len(scene.evaluations()) - fewest
                    if scene.result() != expected:
                        verdict = "DIFFERENT"
                    elif more > scene.allowed:
                        verdict = f"EVALUATED {more} MORE, {scene.allowed} allowed"
                    wasted += more
                except AssertionError as error:
                    verdict = f"FAILED: {error}"
            failures += verdict != "equal"
            struck.update(note.partition(" after ")[0] for note in scene.notes)
            print(f"run {number}: {verdict} ({time.monotonic() - began:.0f} s) {'; '.join(scene.notes)}", flush=True)
    print(f"{options.runs - failures} of {options.runs} runs ended as the undisturbed one")
    print(f"faults: {', '.join(f'{count} {name}' for name, count in struck.most_common())}")
    print(f"{wasted} evaluations were done again, {wasted / max(1, sum(struck.values())):.1f} a fault")
    raise SystemExit(failures > 0)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Give a small file system of its own; None where none may be mounted."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


if __name__ == "__main__":
    main()
