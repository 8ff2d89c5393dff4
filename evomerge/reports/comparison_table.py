"""A comparison of searchers in the terminal and in words; fits 80 columns with two searchers' usual names."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise

from rich import box
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from evomerge.reports import wording
from evomerge.reports.comparison import Group, Pair, SearcherComparison, Spread

QUIET = "dim"
BEST = "bold green"
DIGITS = 3  # significant ones of the largest value in the table

Format = Callable[[float], str]


def comparison_table(comparison: SearcherComparison) -> Lines:
    """Return a table of one row a searcher, the best first; below, how to read it and every note."""
    shown = formatter(comparison)
    table = Table(
        title=Text(title(comparison)),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("searcher", overflow="fold")
    table.add_column("trials,\nitems", justify="right", no_wrap=True)
    for heading in checkpoint_headings(comparison):
        table.add_column(heading.replace(" (", "\n("), justify="right", no_wrap=True)
    has_confirmed = any(group.confirmed for group in comparison.groups)
    if has_confirmed:
        table.add_column("confirmed", justify="right", no_wrap=True)
    if len(comparison.groups) > 1:
        table.add_column("p,\nA12", justify="right", no_wrap=True)
    for group in comparison.groups:
        cells = [_name(group), Text.assemble(trials_text(group), "\n", (items_text(group), QUIET))]
        cells += [_spread(at, shown) for at in group.at]
        cells += [_spread(group.confirmed, shown)] if has_confirmed else []
        cells += [_pair(comparison.against_best(group))] if len(comparison.groups) > 1 else []
        table.add_row(*cells)
    how = (Text(line, style=QUIET) for line in reading(comparison))
    return Lines(table, Text(), *how, *map(Text, comparison.notes))


def title(comparison: SearcherComparison) -> str:
    """Return what is compared, in one line."""
    runs = sum(len(group.runs) for group in comparison.groups)
    measure = comparison.measure[:1].upper() + comparison.measure[1:]
    return f"{measure} of {runs} run{'s' if runs > 1 else ''}, up to {comparison.checkpoints[-1]:,} {comparison.unit}"


def checkpoint_headings(comparison: SearcherComparison) -> list[str]:
    """Return the headings of the columns of values: ``at 1/4 (25)``."""
    parts = ("at 1/4", "at 1/2", "at end")
    return [f"{part} ({cost:,})" for part, cost in zip(parts, comparison.checkpoints, strict=True)]


def reading(comparison: SearcherComparison) -> list[str]:
    """Return how to read the numbers: the reference point, the spread, and the tests, in sentences."""
    lines = ["Median over runs; below it the quartiles."]
    if len(comparison.objectives) > 1:
        point = ", ".join(f"{name} {wording.number(value)}" for name, value in comparison.reference.items())
        lines.append(f"Hypervolume from the worst of all runs' reference models: {point}.")
    tests = sum(pair.p_value is not None for pair in comparison.pairs)
    if len(comparison.groups) > 1:
        a12 = "A12: how often a run of the best ends better than one of this searcher (0.5: neither is better)."
        test = "Wilcoxon's signed ranks, paired by seed" if comparison.paired else "Mann and Whitney's U"
        pairs = f", corrected for {tests} pairs (Holm)" if tests > 1 else ""
        lines.append((f"p against the best searcher, two-sided: {test}{pairs}. " if tests else "") + a12)
    return lines


def seeds_text(group: Group) -> str:
    """Return how many runs a group has, with their seeds: ``5 seeds: 0–4``."""
    seeds = [run.seed for run in group.runs]
    in_row = len(seeds) > 2 and all(after == before + 1 for before, after in pairwise(seeds))
    listed = f"{seeds[0]}–{seeds[-1]}" if in_row else ", ".join(map(str, seeds))
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}: {listed}"


def trials_text(group: Group) -> str:
    """Return the trials of a group's runs that are compared: ``40`` or ``36–40``."""
    return _ends([run.trials for run in group.runs])


def items_text(group: Group) -> str:
    """Return the item evaluations of a group's runs that are compared: the median run's."""
    return wording.whole(statistics.median_low(run.items for run in group.runs))


def spread_texts(spread: Spread | None, shown: Format) -> tuple[str, str]:
    """Return a median and its quartiles as texts; a dash where there is no value yet."""
    if spread is None:
        return "–", ""
    between = " to " if spread.low < 0 else "–"
    return shown(spread.median), f"{shown(spread.low)}{between}{shown(spread.high)}"


def pair_texts(pair: Pair | None) -> tuple[str, str]:
    """Return p and A12 as texts; ``best`` for the best group, no p where runs are too few."""
    if pair is None:
        return "best", ""
    p_value = "–" if pair.p_value is None else wording.p_value(pair.p_value).removeprefix("p ").removeprefix("= ")
    return p_value, f"{pair.effect:.2f}"


def formatter(comparison: SearcherComparison) -> Format:
    """Return what writes all values of a table with the same decimals, enough for the largest to have three digits."""
    spreads = [at for group in comparison.groups for at in (*group.at, group.confirmed) if at is not None]
    largest = max((abs(value) for at in spreads for value in (at.low, at.median, at.high)), default=0.0)
    decimals = DIGITS - math.ceil(math.log10(largest)) if largest else DIGITS
    if not 0 <= decimals <= 6:
        return lambda value: f"{value:.{DIGITS}g}".replace("-", "−")
    return lambda value: f"{value:.{decimals}f}".replace("-", "−")


def _ends(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _name(group: Group) -> Text:
    return Text.assemble((group.label, "bold"), "\n", (seeds_text(group), QUIET))


def _spread(spread: Spread | None, shown: Format) -> Text:
    median, ends = spread_texts(spread, shown)
    return Text.assemble(median, "\n", (ends, QUIET))


def _pair(pair: Pair | None) -> Text:
    first, second = pair_texts(pair)
    return Text.assemble((first, BEST if pair is None else ""), "\n", (second, QUIET))
