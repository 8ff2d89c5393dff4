"""Whatever a tool does, the run goes on: failures, hangs and slowness of a logger."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from evomerge.errors import UnknownNameError
from evomerge.loggers import LOGGERS, Background, Ending, LoggerEntry, LoggerError, Step, missing

STOPPED = Ending("interrupted")


class Tool:
    """A tool that keeps what it is told; ``fail`` is called with each step's number."""

    def __init__(self, next_step: int = 0, fail: Callable[[int], None] = lambda number: None) -> None:
        self.next_step, self.fail = next_step, fail
        self.steps: list[int] = []
        self.ending: Ending | None = None

    def log(self, step: Step) -> None:
        self.fail(step.number)
        self.steps.append(step.number)

    def close(self, ending: Ending) -> None:
        self.ending = ending


def feed(tool: Tool, count: int, *, close: float = 10.0, waiting: int = 1000) -> list[str]:
    notes: list[str] = []
    background = Background("Tool", lambda: tool, notes.append, waiting)
    for number in range(count):
        background.log(number, lambda number=number: Step(number, {}, 0.0))
    background.close(STOPPED, close)
    return notes


def test_steps_come_in_order_and_the_end_comes_last() -> None:
    tool = Tool()
    assert feed(tool, 100) == []
    assert tool.steps == list(range(100))
    assert tool.ending == STOPPED


def test_what_the_tool_has_already_is_not_even_put_together() -> None:
    made: list[int] = []

    def step(number: int) -> Step:
        made.append(number)
        return Step(number, {}, 0.0)

    tool = Tool(next_step=7)
    background = Background("Tool", lambda: tool, lambda text: None)
    for number in range(10):
        background.log(number, lambda number=number: step(number))
    background.close(STOPPED, 10.0)
    assert tool.steps == made == [7, 8, 9]


@pytest.mark.parametrize("error", [OSError("no network"), SystemExit(1), KeyboardInterrupt()])
def test_a_failure_is_told_once_and_ends_the_logging(error: BaseException) -> None:
    def fail(number: int) -> None:
        if number >= 2:
            raise error

    tool = Tool(fail=fail)
    notes = feed(tool, 50)
    assert tool.steps == [0, 1]
    assert tool.ending is None
    assert len(notes) == 1
    assert notes[0].startswith(f"warning: no more is logged to Tool: {type(error).__name__}")


def test_a_tool_that_cannot_be_opened_is_told_in_its_own_words() -> None:
    def refuse() -> Tool:
        raise LoggerError("nobody is logged in")

    notes: list[str] = []
    background = Background("Tool", refuse, notes.append)
    background.close(STOPPED, 10.0)
    assert notes == ["warning: no more is logged to Tool: nobody is logged in"]


def test_a_failure_at_the_end_is_told_too() -> None:
    class Bad(Tool):
        def close(self, ending: Ending) -> None:
            raise RuntimeError("the disk\nis full")

    assert feed(Bad(), 3) == ["warning: no more is logged to Tool: RuntimeError: the disk is full"]


def test_a_tool_that_hangs_costs_no_more_than_the_time_limit() -> None:
    forever = threading.Event()
    tool = Tool(fail=lambda number: (number == 1 and forever.wait()) or None)
    notes = feed(tool, 5, close=0.5)
    assert notes == ["warning: Tool did not come to an end; what it has not got by now is missing there"]
    forever.set()


def test_what_a_slow_tool_cannot_take_is_left_out_and_counted() -> None:
    go = threading.Event()
    tool = Tool(fail=lambda number: go.wait() or None)
    notes: list[str] = []
    background = Background("Tool", lambda: tool, notes.append, 10)
    for number in range(10_000):  # the run does not wait
        background.log(number, lambda number=number: Step(number, {}, 0.0))
    go.set()
    background.close(STOPPED, 10.0)
    left_out = 10_000 - len(tool.steps)
    assert 0 < len(tool.steps) <= 11
    assert notes == [f"warning: Tool was too slow: {left_out} trials were not logged"]


def test_a_missing_package_is_told_with_the_extra_that_has_it() -> None:
    LOGGERS.add("nothing", LoggerEntry("Nothing", "no_such_package_at_all", lambda run: Tool()), origin="test")
    try:
        (problem,) = missing(["nothing", "tensorboard"], "experiment.yaml:3")
    finally:
        del LOGGERS._entries["nothing"]
    assert "no_such_package_at_all is not installed" in str(problem)
    assert "pip install 'evomerge[nothing]'" in str(problem)
    assert problem.where == "experiment.yaml:3"


def test_an_unknown_logger_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'wandb'"):
        LOGGERS["wandv"]
