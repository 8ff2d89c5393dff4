"""The run in the terminal: a live view on a terminal, lines that a log can hold elsewhere."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import pytest
from rich.console import Console

from evomerge.cli.display import LiveDisplay, PlainDisplay, make_display
from evomerge.reports.progress import Display, Progress, WorkerRow
from evomerge.reports.summary import RunSummary, TrialRow
from evomerge.testing.summaries import example_summary


def console_of(*, terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=width, height=40, color_system=None), file


def progress_of(summary: RunSummary) -> Iterator[tuple[TrialRow, Progress]]:
    best: dict[str, tuple[float, int]] = {}
    failed = 0
    for done, trial in enumerate(summary.trials, start=1):
        failed += trial.objectives is None
        for name, value in (trial.objectives or {}).items():
            best[name] = max(best.get(name, (value, trial.number)), (value, trial.number))
        front = [row for row in summary.trials[:done] if row.on_front]
        left = 1.5 * (summary.budget - done)
        yield trial, Progress(done, summary.budget, failed, 2, 2, 0.3, dict(best), 52.0, left, front)


def play(display: Display, summary: RunSummary, *, done: int = 0) -> None:
    with display:
        display.started(summary.name, summary.objectives, summary.budget, done, summary.references)
        for trial, progress in progress_of(summary):
            display.told(trial, progress)
        display.finished("the end")


def test_a_terminal_gets_the_live_view_and_a_file_plain_lines() -> None:
    assert isinstance(make_display(console_of(terminal=True)[0]), LiveDisplay)
    assert isinstance(make_display(console_of(terminal=False)[0]), PlainDisplay)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(console_of(terminal=True)[0]), PlainDisplay)


def test_plain_lines_come_every_twentieth_of_the_budget_and_say_all_that_matters() -> None:
    console, file = console_of(terminal=False)
    play(PlainDisplay(console, clock=lambda: 0.0), example_summary(trials=40, confirmed=False))
    lines = file.getvalue().splitlines()
    assert lines[0] == "cross-lingual-math: 40 trials; objectives: arithmetic_ja, arithmetic_en"
    assert lines[1] == "  arithmetic_ja: best parent 0.900 (math), uniform 0.600"
    trials = [line for line in lines if line.startswith("trial ")]
    assert len(trials) == 20
    assert trials[0].startswith("trial 2/40  arithmetic_ja 0.")
    assert "(best 0." in trials[0]
    assert trials[0].endswith("best parent 0.900)  hv 0.300  front 0  52/min  57s left")
    assert trials[-1].startswith("trial 40/40")
    assert "left" not in trials[-1]
    assert lines[-1] == "the end"
    assert "\x1b" not in file.getvalue()


def test_measures_of_the_front_are_shown_where_there_is_one() -> None:
    for objectives in (1, 2):
        console, file = console_of(terminal=False)
        summary = example_summary(objectives=objectives, confirmed=False)
        progress = Progress(1, 1, hypervolume=0.3, front=summary.front, spread=0.4, igd_plus=0.05)
        for display in (PlainDisplay(console), LiveDisplay(console)):
            display.started(summary.name, summary.objectives, 1, 0, summary.references)
            display.told(summary.trials[0], progress)
            if isinstance(display, LiveDisplay):
                console.print(display.view())
        plain = f"hv 0.300  front {len(summary.front)}  spread 0.400  IGD+ 0.050"
        live = f"Front: {len(summary.front)} trials, spread 0.400, IGD+ 0.050"
        assert [words in file.getvalue() for words in (plain, live)] == [objectives > 1] * 2


def test_a_slow_run_prints_a_line_every_half_minute() -> None:
    console, file = console_of(terminal=False)
    clock = itertools.count(0.0, 40.0)
    summary = example_summary(trials=10, confirmed=False)
    display = PlainDisplay(console, clock=lambda: next(clock))
    display.started(summary.name, summary.objectives, 1000, 0, [])
    for trial, progress in progress_of(summary):
        display.told(trial, Progress(progress.done, 1000))
    assert sum(line.startswith("trial ") for line in file.getvalue().splitlines()) == 10


def test_the_first_failure_is_printed_and_later_ones_counted() -> None:
    console, file = console_of(terminal=False)
    play(PlainDisplay(console, clock=lambda: 0.0), example_summary(failed=(3, 7), confirmed=False))
    text = file.getvalue()
    assert "trial 3 failed: ValueError: bad 3 (later failures are only counted)" in text
    assert "trial 7 failed" not in text
    assert "failed 2" in text.splitlines()[-2]


def test_a_resumed_run_says_where_it_goes_on() -> None:
    console, file = console_of(terminal=False)
    play(PlainDisplay(console), example_summary(confirmed=False), done=12)
    assert "goes on after 12 of 40 trials" in file.getvalue()


def test_a_plain_line_is_never_wrapped_or_read_as_markup() -> None:
    console, file = console_of(terminal=False, width=20)
    PlainDisplay(console).note("[red]a note that is longer than the console is wide[/red]")
    assert file.getvalue() == "[red]a note that is longer than the console is wide[/red]\n"


@pytest.mark.parametrize("objectives", [1, 2, 4])
def test_the_live_view_ends_on_the_final_state_within_80_columns(objectives: int) -> None:
    console, file = console_of(terminal=True)
    play(LiveDisplay(console), example_summary(objectives=objectives, failed=(3,), confirmed=False))
    lines = file.getvalue().split("\x1b[2K")[-1].splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert "40/40" in text
    volume = "hypervolume 0.300  " if objectives > 1 else ""
    assert f"52/min  {volume}workers busy 2/2  failed 1" in text
    assert "best parent 0.900 (math), uniform 0.600" in text
    assert "last failure: trial 3: ValueError: bad 3" in text
    assert ("Front: " in text) == (objectives > 1)
    assert lines[-1].endswith("the end")


def test_the_time_left_counts_down_between_trials() -> None:
    console, _ = console_of(terminal=True)
    now = [0.0]
    display = LiveDisplay(console, clock=lambda: now[0])
    summary = example_summary(confirmed=False)
    display.started(summary.name, summary.objectives, 40, 0, summary.references)
    display.told(summary.trials[0], Progress(1, 40, seconds_left=100.0))
    now[0] = 30.0
    with console.capture() as captured:
        console.print(display.view())
    assert "1m10s left" in captured.get()


def test_a_best_value_is_bold_green_only_when_it_beats_every_reference() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system="standard")
    display = LiveDisplay(console)
    summary = example_summary(confirmed=False)
    display.started(summary.name, summary.objectives, 40, 0, summary.references)
    best = {"arithmetic_ja": (0.95, 7), "arithmetic_en": (0.85, 9)}
    display.told(summary.trials[0], Progress(1, 40, best=best))
    console.print(display.view())
    assert "\x1b[1;32m0.950" in file.getvalue()
    assert "\x1b[1;32m0.850" not in file.getvalue()


def test_an_exception_inside_stops_the_live_view_and_goes_on() -> None:
    console, file = console_of(terminal=True)
    with pytest.raises(KeyboardInterrupt), LiveDisplay(console):
        raise KeyboardInterrupt
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l"), "the cursor is shown again"


def test_a_note_stays_above_the_live_view() -> None:
    console, file = console_of(terminal=True)
    with LiveDisplay(console) as display:
        display.note("a worker died and was replaced [1]")
    assert "a worker died and was replaced [1]" in file.getvalue()


def workers_of(count: int) -> list[WorkerRow]:
    """Workers that are busy for longer and longer; the last two are idle and starting."""
    busy = [
        WorkerRow(f"node-{k}:{k}", f"node-{k}", "cpu (1 threads)", "busy", f"trial {k}", float(k), 10, k % 2, 6.0)
        for k in range(count - 2)
    ]
    idle = WorkerRow("node-z:1", "node-z", "NVIDIA H100", "idle", seconds=1.0)
    return [*busy, idle, WorkerRow("", "", "", "starting", seconds=2.0)]


@pytest.mark.parametrize(("count", "rest"), [(4, ""), (8, ""), (9, "and 1 more: 1 starting"), (64, "and 56 more")])
def test_the_live_view_shows_at_most_eight_workers_and_counts_the_rest(count: int, rest: str) -> None:
    console, file = console_of(terminal=False)
    display = LiveDisplay(console)
    display.workers(workers_of(count))
    console.print(display.view())
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("trial ") + text.count("idle\n") <= 8
    assert rest in text
    assert ("more" in text) == bool(rest)
    if count == 64:
        assert "and 56 more: 54 busy, 1 idle, 1 starting" in text
        assert all(f"trial {k} " in text for k in range(54, 62)), "those that are at it for longest"


def test_what_a_worker_does_is_counted_on_between_polls_and_gone_at_the_end() -> None:
    console, file = console_of(terminal=False)
    now = [0.0]
    display = LiveDisplay(console, clock=lambda: now[0])
    display.workers([WorkerRow("a:1", "a", "cpu", "busy", "trial 3", 5.0, 4, 1, 2.5)])
    now[0] = 60.0
    console.print(display.view())
    row = next(line for line in file.getvalue().splitlines() if line.startswith("a:1"))
    assert row.split() == ["a:1", "cpu", "trial", "3", "1m05s", "4", "1", "2.5"]
    display.workers([])
    file.truncate(0)
    console.print(display.view())
    assert "trial 3" not in file.getvalue()


def test_the_plain_display_prints_nothing_about_workers() -> None:
    console, file = console_of(terminal=False)
    PlainDisplay(console).workers(workers_of(4))
    assert file.getvalue() == ""
