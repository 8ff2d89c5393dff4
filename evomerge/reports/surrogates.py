"""What reports say of surrogates: how well they fit, and how far off they were where trials put them to the test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import plotly.graph_objects as go

from evomerge.reports import wording
from evomerge.reports.plots import COLOURS, padded
from evomerge.reports.summary import Z95, Foretelling, ObjectiveInfo, Surrogates
from evomerge.searchers.surrogates.explanation import described

Kind = Literal["trial", "prediction"]
WORST = 5  # misses in the table
_PALE = "rgba(47,111,214,0.3)"
_AXES: dict[Kind, tuple[str, str]] = {
    "trial": ("foretold when it was asked", "scored on the search items"),
    "prediction": ("predicted after the search", "scored on the confirmation items"),
}


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
    confirmed = [f"{name}: {agreement_confirmed(checks)}" for name, checks in surrogates.confirmed.items() if checks]
    return [
        *filter(None, [outdated(surrogates, complete)]),
        *described(surrogates.facts),
        *told,
        *confirmed,
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
    confirmed = max(map(len, surrogates.confirmed.values()), default=0)
    known = f", {wording.whole(confirmed)} of them confirmed" if confirmed else ""
    return (
        f"the predicted front has {points}{known}: `evomerge front {run} --prefer NAME=WEIGHT,…` gives what suits you"
    )


def agreement(foretold: Sequence[Foretelling]) -> str:
    """Return how far off the predictions of one objective of trials were, in one line."""
    return f"the 95% interval foretold holds the score of {_agreement(foretold, 'trials')}"


def agreement_confirmed(confirmed: Sequence[Foretelling]) -> str:
    """Return how far off the confirmed points of the predicted front were in one objective, in one line."""
    points = "confirmed points of the predicted front"
    return f"the 95% interval predicted holds the score on unseen items of {_agreement(confirmed, points)}"


def _agreement(foretold: Sequence[Foretelling], what: str) -> str:
    misses = [one.miss for one in foretold]
    mean, size = math.fsum(misses) / len(misses), math.fsum(map(abs, misses)) / len(misses)
    holding = sum(one.holds for one in foretold)
    return (
        f"{holding} of {len(foretold)} {what} ({wording.share(holding / len(foretold))}); "
        f"mean miss {wording.signed(mean)}, mean absolute miss {wording.number(size)}"
    )


def captions(surrogates: Surrogates, objectives: Sequence[ObjectiveInfo]) -> dict[str, str]:
    """Return, by objective of which anything was foretold, the caption of its figure."""
    return {
        o.name: f"{o.title}: {agreement(surrogates.foretold[o.name])}"
        for o in objectives
        if surrogates.foretold.get(o.name)
    }


def captions_confirmed(surrogates: Surrogates, objectives: Sequence[ObjectiveInfo]) -> dict[str, str]:
    """Return, by objective of which predictions were confirmed, the caption of its figure."""
    return {
        o.name: f"{o.title}: {agreement_confirmed(surrogates.confirmed[o.name])}"
        for o in objectives
        if surrogates.confirmed.get(o.name)
    }


def worst(surrogates: Surrogates) -> list[tuple[str, str, Foretelling]]:
    """Return (trial or prediction, objective, what happened) of the largest misses in standard errors, in order."""
    kinds = {"trial": surrogates.foretold, "prediction": surrogates.confirmed}
    found = [
        (f"{kind} {one.trial}", name, one)
        for kind, told in kinds.items()
        for name, all_of in told.items()
        for one in all_of
    ]
    return sorted(found, key=lambda entry: -entry[2].errors)[:WORST]


def worst_rows(surrogates: Surrogates) -> list[tuple[str, tuple[str, ...]]]:
    """Return (trial or prediction, cells) of the table of the largest misses."""
    return [
        (
            label,
            (
                objective,
                f"{wording.number(one.foretold)} ± {wording.number(Z95 * one.standard_error)}",
                wording.number(one.score),
                wording.signed(one.miss),
                f"{one.errors:.1f}" if math.isfinite(one.errors) else "∞",
            ),
        )
        for label, objective, one in worst(surrogates)
    ]


def figure(foretold: Sequence[Foretelling], pick: int | None, kind: Kind = "trial") -> go.Figure:
    """Return scores against what was foretold, with its intervals and the diagonal on which they agree."""
    before, after = _AXES[kind]
    ends = [one.foretold + side * Z95 * one.standard_error for one in foretold for side in (-1, 1)]
    low, high = padded([*ends, *(one.score for one in foretold)], 0.05)
    drawn = go.Figure(
        go.Scatter(
            x=[low, high], y=[low, high], mode="lines", name="score = foretold", hoverinfo="skip",
            line={"dash": "dot", "width": 1.5, "color": COLOURS["base"]},
        )
    )  # fmt: skip
    groups = {
        f"{kind}s": [one for one in foretold if one.trial != pick],
        "winner": [one for one in foretold if one.trial == pick],
    }
    for name, members in groups.items():
        if members:
            drawn.add_trace(_points(name, members, kind))
    drawn.update_xaxes(title=before, range=[low, high])
    drawn.update_yaxes(title=after, range=[low, high])
    return drawn.update_layout(height=400)


def _points(name: str, foretold: Sequence[Foretelling], kind: Kind) -> go.Scatter:
    best = name == "winner"
    return go.Scatter(
        x=[one.foretold for one in foretold],
        y=[one.score for one in foretold],
        error_x={
            "type": "data", "thickness": 1, "width": 3, "color": COLOURS["winner"] if best else _PALE,
            "array": [Z95 * one.standard_error for one in foretold],
        },
        text=[f"{kind} {one.trial}: missed by {wording.signed(one.miss)}" for one in foretold],
        name=name,
        mode="markers",
        marker={
            "color": COLOURS["winner" if best else "front"],
            "size": 14 if best else 8,
            "symbol": "star" if best else "circle",
        },
        hovertemplate="%{text}<br>foretold %{x:.4g}, scored %{y:.4g}<extra></extra>",
    )  # fmt: skip
