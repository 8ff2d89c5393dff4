"""What reports say of surrogates: how well they fit, and how far off they were where trials put them to the test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from evomerge.reports import wording
from evomerge.reports.plots import COLOURS, padded
from evomerge.reports.summary import Z95, Foretelling, ObjectiveInfo, Surrogates
from evomerge.searchers.surrogates.explanation import described

WORST = 5  # misses in the table
_PALE = "rgba(47,111,214,0.3)"


def columns(surrogates: Surrogates) -> tuple[str, ...]:
    """Return the headings of the table of fits."""
    ridge = ("ridge",) if _has_ridge(surrogates) else ()
    return ("link", "evaluations", "coefficients", *ridge, "R²", "R² left out", "error left out")


def rows(surrogates: Surrogates) -> list[tuple[str, tuple[str, ...]]]:
    """Return (objective, cells) of the table of fits."""
    found = []
    for name, facts in surrogates.facts.items():
        ridge = (f"{facts.ridge:.3g}",) if _has_ridge(surrogates) else ()
        counts = (wording.whole(facts.evaluations), wording.whole(facts.coefficients))
        left_out = wording.estimate(facts.r2_left_out, facts.r2_error)
        fit = (wording.number(facts.r2), left_out, wording.number(facts.error_left_out))
        found.append((name, (facts.link, *counts, *ridge, *fit)))
    return found


def _has_ridge(surrogates: Surrogates) -> bool:
    return any(facts.ridge for facts in surrogates.facts.values())


def doubts(surrogates: Surrogates) -> list[str]:
    """Return a line for each objective that its quadratic does not describe."""
    return described({name: facts for name, facts in surrogates.facts.items() if facts.is_poor})


def lines(surrogates: Surrogates, complete: int, run: str) -> list[str]:
    """Return what a terminal shows.

    Args:
        surrogates: of the run.
        complete: how many trials have objectives by now.
        run: its folder.
    """
    told = [f"{name}: {agreement(checks)}" for name, checks in surrogates.foretold.items() if checks]
    return [
        *filter(None, [outdated(surrogates, complete)]),
        *described(surrogates.facts),
        *told,
        predicted(surrogates, run),
    ]


def outdated(surrogates: Surrogates, complete: int) -> str:
    """Return a warning if trials came after the fits, which are made anew whenever the search stops."""
    if surrogates.evaluations >= complete:
        return ""
    return (
        f"fitted to the first {surrogates.evaluations} of {complete} trials with scores; a resumed run fits them anew"
    )


def predicted(surrogates: Surrogates, run: str) -> str:
    """Return where the predicted front can be asked."""
    count = len(surrogates.front)
    points = "1 point" if count == 1 else f"{wording.whole(count)} points"
    return f"the predicted front has {points}: `evomerge front {run} --prefer NAME=WEIGHT,…` gives what suits you"


def agreement(foretold: Sequence[Foretelling]) -> str:
    """Return how far off the predictions of one objective were, in one line."""
    misses = [one.miss for one in foretold]
    mean, size = math.fsum(misses) / len(misses), math.fsum(map(abs, misses)) / len(misses)
    holding = sum(one.holds for one in foretold)
    of = f"{holding} of {len(foretold)} trials ({wording.share(holding / len(foretold))})"
    return (
        f"the 95% interval foretold holds the score of {of}; mean miss {wording.signed(mean)}, "
        f"mean absolute miss {wording.number(size)}"
    )


def captions(surrogates: Surrogates, objectives: Sequence[ObjectiveInfo]) -> dict[str, str]:
    """Return, by objective of which anything was foretold, the caption of its figure."""
    return {
        o.name: f"{o.title}: {agreement(surrogates.foretold[o.name])}"
        for o in objectives
        if surrogates.foretold.get(o.name)
    }


def worst(surrogates: Surrogates) -> list[tuple[int, str, Foretelling]]:
    """Return (trial, objective, what happened) of the largest misses in standard errors, the largest first."""
    found = [(one.trial, name, one) for name, all_of in surrogates.foretold.items() for one in all_of]
    return sorted(found, key=lambda entry: -entry[2].errors)[:WORST]


def worst_rows(surrogates: Surrogates) -> list[tuple[str, tuple[str, ...]]]:
    """Return (trial, cells) of the table of the largest misses."""
    return [
        (
            f"trial {trial}",
            (
                objective,
                f"{wording.number(one.foretold)} ± {wording.number(Z95 * one.standard_error)}",
                wording.number(one.score),
                wording.signed(one.miss),
                f"{one.errors:.1f}" if math.isfinite(one.errors) else "∞",
            ),
        )
        for trial, objective, one in worst(surrogates)
    ]


def figure(foretold: Sequence[Foretelling], pick: int | None) -> go.Figure:
    """Return scores against what was foretold, with its intervals and the diagonal on which they agree."""
    ends = [one.foretold + side * Z95 * one.standard_error for one in foretold for side in (-1, 1)]
    low, high = padded([*ends, *(one.score for one in foretold)], 0.05)
    drawn = go.Figure(
        go.Scatter(
            x=[low, high], y=[low, high], mode="lines", name="score = foretold", hoverinfo="skip",
            line={"dash": "dot", "width": 1.5, "color": COLOURS["base"]},
        )
    )  # fmt: skip
    groups = {
        "trials": [one for one in foretold if one.trial != pick],
        "winner": [one for one in foretold if one.trial == pick],
    }
    for name, members in groups.items():
        if members:
            drawn.add_trace(_points(name, members))
    drawn.update_xaxes(title="foretold when it was asked", range=[low, high])
    drawn.update_yaxes(title="scored on the search items", range=[low, high])
    return drawn.update_layout(height=400)


def _points(name: str, foretold: Sequence[Foretelling]) -> go.Scatter:
    best = name == "winner"
    return go.Scatter(
        x=[one.foretold for one in foretold],
        y=[one.score for one in foretold],
        error_x={
            "type": "data", "thickness": 1, "width": 3, "color": COLOURS["winner"] if best else _PALE,
            "array": [Z95 * one.standard_error for one in foretold],
        },
        text=[f"trial {one.trial}: missed by {wording.signed(one.miss)}" for one in foretold],
        name=name,
        mode="markers",
        marker={
            "color": COLOURS["winner" if best else "front"],
            "size": 14 if best else 8,
            "symbol": "star" if best else "circle",
        },
        hovertemplate="%{text}<br>foretold %{x:.4g}, scored %{y:.4g}<extra></extra>",
    )  # fmt: skip
