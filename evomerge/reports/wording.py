"""Numbers and verdicts in words, the same in the terminal and in the HTML report.

A verdict claims no more than the interval does: "beats" needs the whole 95% interval of the paired
difference above zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.reports.summary import Comparison, ConfirmedRow, Interval, RunSummary


def number(value: float) -> str:
    """Return ``value`` in a width that suits scores: three decimals below 10, four digits above."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1e}".replace("-", "−")
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1e5 else f"{value:.3e}"
    return text.replace("-", "−")


def whole(value: int) -> str:
    """Return a count with commas between thousands."""
    return f"{value:,}"


def front_measures(spread: float | None, igd_plus: float | None) -> list[str]:
    """Return ``spread 0.412`` and ``IGD+ 0.031``, where there are such."""
    named = {"spread": spread, "IGD+": igd_plus}
    return [f"{name} {number(value)}" for name, value in named.items() if value is not None]


def signed(value: float) -> str:
    """Return ``value`` with its sign and three decimals."""
    return f"{value:+.3f}".replace("-", "−")


def estimate(value: float, standard_error: float) -> str:
    """Return an estimate with its standard error: ``0.505 ± 0.012``; the value alone where it is exact."""
    return f"{number(value)} ± {number(standard_error)}" if standard_error else number(value)


def ends(interval: Interval) -> str:
    """Return the ends of an interval, short enough for a table cell: ``0.68–0.74``; nothing where there is none."""
    if interval.low == interval.high:
        return ""
    between = " to " if interval.low < 0 else "–"
    return f"{_short(interval.low)}{between}{_short(interval.high)}"


def _short(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if 0.01 <= abs(value) < 10 or value == 0 else number(value)


def p_value(value: float) -> str:
    """Return ``p < 0.001`` or ``p = 0.034``."""
    if not math.isfinite(value):
        return "p unknown"
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def share(value: float) -> str:
    """Return a share (0 to 1) as per cent; a small share is never shown as zero."""
    return "<0.1%" if 0 < value < 0.001 else f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"


def duration(seconds: float) -> str:
    """Return ``41s``, ``1m40s`` or ``2h05m``."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{seconds:.1f}s" if 0 < seconds < 9.95 and seconds != whole else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def size(count: float) -> str:
    """Return bytes as ``512 B``, ``1.4 MiB`` or ``15 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def between(low: str, high: str) -> str:
    """Return the ends of a range: ``1m40s to 2m10s``; one of them where they read the same."""
    return low if low == high else f"{low} to {high}"


def reference_point(summary: RunSummary) -> str:
    """Return what the hypervolume is measured from: ``a 0.100, b 0.200``."""
    return ", ".join(f"{name} {number(value)}" for name, value in summary.reference_point.items())


def verdict(summary: RunSummary, comparison: Comparison) -> str:
    """Return one comparison as a sentence about the winner, without its full stop."""
    winner, against = _winner_name(summary), rival(summary, comparison)
    difference = comparison.difference
    numbers = f"{change(difference)}, {p_value(comparison.p_value)}"
    if comparison.beats:
        return f"{winner} beats {against} by {numbers}"
    if comparison.loses:
        return f"{winner} is worse than {against}: {numbers}"
    doubt = "the interval holds zero" if difference.low <= 0 else "p, corrected for the choice, is not below 0.05"
    return f"{winner} does not beat {against}: {numbers} ({doubt})"


def rival(summary: RunSummary, comparison: Comparison) -> str:
    """Return what the winner is compared with, in words: ``the best parent (math)``."""
    kinds = {row.label: row.kind for row in summary.confirmed if row.trial is None}
    words = {
        "parent": f"the best parent ({comparison.against})",
        "base": "the base",
        "uniform": "the uniform merge",
    }
    return words.get(kinds.get(comparison.against, ""), comparison.against)


def _winner_name(summary: RunSummary) -> str:
    return capital(summary.winner.label) if summary.winner else "The winner"


def change(difference: Interval) -> str:
    """Return a difference with signs: ``+0.031 [+0.006, +0.055]``; an end near zero gets a fourth decimal."""
    numbers = (difference.value, difference.low, difference.high)
    decimals = 4 if any(value != 0 and abs(value) < 0.0005 for value in numbers) else 3
    value, low, high = (f"{value:+.{decimals}f}".replace("-", "−").replace("inf", "∞") for value in numbers)
    return f"{value} [{low}, {high}]"


def headline(summary: RunSummary) -> str:
    """Return the run's result in one sentence, no stronger than the comparisons allow."""
    if summary.winner is None:
        return _unconfirmed(summary)
    winner = _winner_name(summary)
    if not summary.comparisons:
        return f"{winner} is the pick; it was compared with nothing."
    beaten = [rival(summary, c) for c in summary.comparisons if c.beats]
    unbeaten = [rival(summary, c) for c in summary.comparisons if not c.beats]
    if not unbeaten:
        return f"{winner} beats {_listed(beaten)}."
    if not beaten:
        return f"{winner} does not beat {_listed(unbeaten, 'or')}."
    return f"{winner} beats {_listed(beaten)}, but does not beat {_listed(unbeaten, 'or')}."


def _unconfirmed(summary: RunSummary) -> str:
    if not summary.trials:
        return "No trial has finished yet."
    if not summary.complete:
        return f"All {len(summary.trials)} trials so far failed."
    return "Nothing is confirmed yet: the scores below are on the items that the search optimises."


def capital(text: str) -> str:
    """Return ``text`` with a capital first letter and the rest as it was."""
    return text[:1].upper() + text[1:]


def _listed(names: Sequence[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def compared_rows(summary: RunSummary) -> list[ConfirmedRow]:
    """Return the confirmed parents, base, uniform merge and winner, in that order."""
    order = {"parent": 0, "base": 1, "uniform": 2}
    rows = sorted((row for row in summary.confirmed if row.kind in order), key=lambda row: order[row.kind])
    return rows + [row for row in [summary.winner] if row is not None]
