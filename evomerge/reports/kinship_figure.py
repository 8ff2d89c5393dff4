"""The kinship of a run's parents as a heat map."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from evomerge.kinship import mean_of_pairs, pearson_correlation
from evomerge.reports import wording
from evomerge.reports.summary import ParentsKinship


def kinship_figure(kinship: ParentsKinship) -> tuple[go.Figure, str]:
    """Return the correlations of the parents' task vectors as a heat map, with its caption."""
    matrix = pearson_correlation(kinship.products)
    names = [html.escape(name) for name in kinship.models]
    cells = [[wording.number(value) for value in row] for row in matrix.tolist()]
    figure = go.Figure(
        go.Heatmap(
            z=matrix, x=names, y=names, text=cells, texttemplate="%{text}", zmin=-1, zmax=1, xgap=1, ygap=1,
            colorscale="RdBu", colorbar={"thickness": 10}, hoverongaps=False,
            hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(showgrid=False, type="category")
    figure.update_yaxes(showgrid=False, type="category", autorange="reversed")
    caption = f"Correlation of task vectors, mean of all pairs {wording.number(mean_of_pairs(matrix))}"
    return figure.update_layout(height=400), caption
