"""The path of a routed model: through which layers of which parents its hidden states go, drawn and told.

The figure is that of Akiba et al. 2025, "Evolutionary optimization of model merging recipes"
(https://arxiv.org/abs/2403.13187): a parent's layer over the layer of the merged model, one colour a parent, the
size of a mark the scale. Parents also differ in shape, and a hollow mark is a negative scale, for readers who do not
see the colours.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from evomerge.errors import ConfigError
from evomerge.recipes import PathStep, Recipe, parse_recipe, path_of
from evomerge.recipes.files import STAGE_BREAK
from evomerge.recipes.path_text import outside_in_words, scale_in_words
from evomerge.reports.plots import COLOURS
from evomerge.reports.summary import RunSummary

# Each is at least 3:1 against the report's light and dark cards, and told apart from its neighbours by colour-blind
# readers too (after Okabe & Ito 2008, "Color Universal Design").
PARENT_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
PARENT_SHAPES = ("circle", "square", "diamond", "triangle-up", "cross")  # not as many: no pair comes twice before 20
LABELLED_STEPS = 16  # above this, the labels of scales would run into each other; hovering tells them
_ALL_TICKS = 20
_MARK = 11.0  # pixels across at scale 1, while there is room
_WIDTH = 540.0  # pixels that the steps share on paper, the narrowest place of a report
_SCALES_DRAWN = (0.4, 1.8)  # scales beyond look like these


def winner_recipe(summary: RunSummary) -> Recipe | None:
    """Return the picked trial's recipe (of several stages, the last), or None if there is none to read."""
    try:
        return parse_recipe((summary.winner_recipe_yaml or "").rpartition(STAGE_BREAK)[2])  # there may be thousands
    except ConfigError:  # written by another version; the report shows its text as it is
        return None


def path_figure(recipe: Recipe, names: Mapping[str, str]) -> go.Figure | None:
    """Return the figure of a routed recipe's path, None for other recipes.

    Args:
        names: reference → what to call that model.
    """
    path = path_of(recipe)
    if path is None:
        return None
    models = list(dict.fromkeys(step.model for step in path))
    line = go.Scatter(
        x=list(range(len(path))), y=[step.layer for step in path], mode="lines", showlegend=False, hoverinfo="skip",
        line={"width": 1, "color": COLOURS["base"]}, opacity=0.6,
    )  # fmt: skip
    marks = [_marks(path, model, index, names.get(model, model)) for index, model in enumerate(models)]
    figure = go.Figure([line, *marks])
    figure.update_xaxes(title="layer of this model", zeroline=False, **_whole(len(path) - 1))
    figure.update_yaxes(title="layer of the parent", zeroline=False, **_whole(max(step.layer for step in path)))
    ends = html.escape(outside_in_words(recipe, names))
    place = {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom"}
    figure.add_annotation(text=ends, showarrow=False, yshift=6, **place)
    figure.update_layout(legend={"itemsizing": "constant"})
    return figure


def path_note(recipe: Recipe) -> str:
    """Return how to read the marks of a path's figure; nothing where all are alike."""
    scales = [step.scale for step in path_of(recipe) or ()]
    if all(scale == 1 for scale in scales):
        return ""
    hollow = " A hollow mark: a negative one." if min(scales) < 0 else ""
    return f"Size of a mark: the number that the hidden states are multiplied by on entering the layer.{hollow}"


def _marks(path: tuple[PathStep, ...], model: str, index: int, name: str) -> go.Scatter:
    """Return the marks of the steps through layers of one parent, the path's ``index``-th."""
    own = [(place, step) for place, step in enumerate(path) if step.model == model]
    colour, shape = PARENT_COLOURS[index % len(PARENT_COLOURS)], PARENT_SHAPES[index % len(PARENT_SHAPES)]
    labels = ["" if step.scale == 1 else scale_in_words(step.scale) for _, step in own]
    shown = html.escape(name)
    return go.Scatter(
        x=[place for place, _ in own],
        y=[step.layer for _, step in own],
        name=shown,
        mode="markers+text" if len(path) <= LABELLED_STEPS else "markers",
        text=labels,
        textposition="bottom right",
        textfont={"size": 11},
        cliponaxis=False,
        hovertemplate=f"layer %{{x}}: {shown} %{{y}} %{{text}}<extra></extra>",
        marker={
            "size": [_size(step.scale, len(path)) for _, step in own],
            "symbol": [shape if step.scale > 0 else f"{shape}-open" for _, step in own],
            "color": colour,
            "opacity": 1,
            "line": {"width": 2, "color": colour},
        },
    )


def _size(scale: float, steps: int) -> float:
    least, most = _SCALES_DRAWN
    return round(min(_MARK, _WIDTH / steps) * min(max(abs(scale), least), most), 2)


def _whole(largest: int) -> dict[str, Any]:
    """Return an axis from 0 to ``largest`` whose ticks are whole numbers."""
    room = 0.6 + largest / 50
    return {"range": [-room, largest + room], **({"dtick": 1} if largest <= _ALL_TICKS else {})}
