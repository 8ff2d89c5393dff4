"""A plan in the terminal."""

from io import StringIO

import pytest
from rich.console import Console

from evomerge.reports import wording
from evomerge.reports.plan_table import plan_table
from evomerge.reports.planned import DiskPlan, MemoryPlan, Plan, Span, StagePlan, TaskPlan, TimePlan, WorkersPlan

GIB = 2**30
TASKS = (TaskPlan("gsm8k", 20, 200, 400, 310, 256), TaskPlan("./score.py:brevity", 100, 100, 50))
STAGE = StagePlan(
    "", "parameter, method ties", {"real numbers": 64}, "nsga2", 1500, Span(1500, 1500), TASKS, 6, 12, Span(9.4, 44)
)
MEMORY = MemoryPlan(
    weights=15 * GIB, layers=0, cache=4 * GIB, logits=0, activations=GIB, process=3 * GIB, parents=45 * GIB,
    prepared=2**26, batch=64, machine=128 * GIB, device=80 * GIB, assumed=("in generation 16 layers keep a window",),
)  # fmt: skip
DISK = DiskPlan("/data", 900 * GIB, 2**28, 2**22, 2**22, 0, 2**26, "/cache", 15 * GIB)
TIME = TimePlan(
    95.0, Span(40, 61), Span(2, 3), {"search": Span(7200, 10_000), "confirmation": Span(60, 60)}, Span(2, 3)
)
WORKERS = WorkersPlan(8, "cuda", 4, 1.0, 1)


def shown(plan: Plan, width: int = 160) -> list[str]:
    text = StringIO()
    Console(file=text, width=width).print(plan_table(plan))
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def test_every_part_is_told() -> None:
    lines = shown(Plan("mine", (STAGE,), WORKERS, MEMORY, DISK, TIME))
    for line in (
        "genes 64 64 real numbers",
        "trials 1,500 by nsga2; each asks",
        "gsm8k 20 of 200 items (estimated), 400 to confirm; up to 310 + 256 tokens",
        "score.py:brevity 100 items, 50 to confirm",
        "calibration 12 random merges, on all search items",
        "confirmed 9 to 44 models: references, and a front of assumed size",
        "keys and values 4.0 GiB of 64 answers generated together",
        "a GPU 20 GiB of 80 GiB; parents are kept there too, as far as they fit",
        "a worker 3.0 GiB pages of its own",
        "together 24 GiB 8 workers; this machine has 128 GiB",
        "assumed in generation 16 layers keep a window",
        "the run folder 264 MiB 900 GiB free in /data",
        "Time on 8 GPU workers, 1 GPUs each",
        "search 2h00m to 2h46m",
        "confirmation 1m00s",
        "GPU-hours 2 to 3",
    ):
        assert line in lines, line


def test_what_is_to_be_fetched() -> None:
    lines = shown(Plan("mine", fetched={"a/b": 3 * GIB, "c/d": GIB}))
    assert "a/b 3.0 GiB" in lines
    assert "together 4.0 GiB the rest is known once they are here: --fetch" in lines


def test_it_fits_eighty_columns() -> None:
    text = StringIO()
    Console(file=text, width=80).print(plan_table(Plan("mine", (STAGE,), WORKERS, MEMORY, DISK, TIME)))
    assert max(map(len, text.getvalue().splitlines())) <= 80
    assert "…" not in text.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.0 KiB"),
        (1500 * 1024, "1.5 MiB"),
        (2**30 * 15, "15 GiB"),
        (2**40, "1.0 TiB"),
    ],
)
def test_bytes_in_words(count: int, text: str) -> None:
    assert wording.size(count) == text


def test_a_range_whose_ends_read_the_same_is_one() -> None:
    assert wording.between("3s", "3s") == "3s"
    assert wording.between("3s", "4s") == "3s to 4s"
