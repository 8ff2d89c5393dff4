"""The HTML report: one file that needs no network, drawn from a ``RunSummary``.

The page is ``report.html.j2``; this module prepares what it shows. The template escapes every text, and the
figures travel as JSON, so nothing in a recipe or a traceback can become markup. The same summary gives the
same bytes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import YamlLexer

from evomerge.recipes.path_text import path_in_words
from evomerge.reports import archives, estimates, surrogates, timings, tree, wording
from evomerge.reports.front_plots import front_figures, profile_figure
from evomerge.reports.importance import FEWEST_TRIALS, GeneImportance, importance, over_depth, without_depth
from evomerge.reports.kinship_figure import kinship_figure
from evomerge.reports.paths import path_figure, path_note, winner_recipe
from evomerge.reports.plots import (
    TOP_GENES,
    depth_figure,
    genome_figure,
    hypervolume_figure,
    igd_plus_figure,
    importance_figure,
    progress_figure,
)
from evomerge.reports.score_table import confirmed_scores, front_scores, prediction_scores, search_scores
from evomerge.reports.summary import Comparison, ReferenceRow, RunSummary, TrialRow
from evomerge.search_spaces.genes import Genome

FRONT_ROWS = 50


@dataclass
class Figures:
    """The page's figures: keeps each as JSON and hands the template its place."""

    specs: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, figure: go.Figure) -> str:
        """Keep ``figure`` under ``name`` and return ``name``."""
        figure.update_layout(template="none")
        spec = json.loads(figure.to_json())
        spec["layout"].pop("template", None)
        # "<" would let a string end the script element that holds the JSON.
        self.specs[name] = json.dumps(spec).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        return name

    def place(self, name: str) -> Markup:
        """Return the element that the page's script draws the figure ``name`` into."""
        height = json.loads(self.specs[name])["layout"].get("height", 360)
        data = Markup('<script type="application/json">{}</script>').format(Markup(self.specs[name]))
        return Markup('<div class="figure" id="figure-{}" style="min-height:{}px">{}</div>').format(name, height, data)


def write_report(summary: RunSummary, path: Path) -> Path:
    """Write the report to ``path`` in one step (a reader never sees half a file) and return it."""
    return write_page(render_report(summary), path)


def write_page(page: str, path: Path) -> Path:
    """Write a page to ``path`` in one step and return it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def environment_of(folder: Path) -> Environment:
    """Return what renders the templates in ``folder``: everything is escaped, and nothing may be missing."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_report(summary: RunSummary) -> str:
    """Return the report as one HTML page, about 5 MB, most of it the plotting library."""
    folder = Path(__file__).parent
    environment = environment_of(folder)
    environment.filters.update(number=wording.number, share=wording.share, duration=wording.duration)
    figures = Figures()
    return environment.get_template("report.html.j2").render(
        run=summary,
        headline=wording.headline(summary),
        tone=_tone(summary),
        verdicts=[(_verdict_tone(c), wording.verdict(summary, c)) for c in summary.comparisons],
        tiles=_tiles(summary),
        scores=confirmed_scores(summary) if summary.confirmed else search_scores(summary),
        front_scores=front_scores(summary, FRONT_ROWS),
        prediction_scores=prediction_scores(summary, FRONT_ROWS),
        front_note=_front_note(summary),
        sections=_figure_sections(summary, figures),
        genes=_gene_panes(summary, figures),
        gene_note=_gene_note(summary),
        winner=_winner(summary, figures),
        archives=[
            (figures.add(f"archive-{index}", figure), caption)
            for index, (figure, caption) in enumerate(archives.figures(summary.archives))
        ],
        kinship=_kinship(summary, figures),
        estimates=_estimates(summary, figures),
        surrogates=_surrogates(summary, figures),
        tree=_tree(summary),
        recipe=_yaml(summary.winner_recipe_yaml or ""),
        experiment=_yaml(summary.experiment_yaml),
        shares=_shares(summary),
        failures=_failures(summary),
        time=_time(summary.trials),
        figure=figures.place,
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),
        script=Markup((folder / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()) if figures.specs else "",
    )


def _tone(summary: RunSummary) -> str:
    if summary.winner is None or not summary.comparisons:
        return "open"
    return "good" if all(c.beats for c in summary.comparisons) else "mixed"


def _verdict_tone(comparison: Comparison) -> str:
    return "good" if comparison.beats else "bad" if comparison.loses else "mixed"


def _tiles(summary: RunSummary) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page, as (label, text)."""
    done = len(summary.trials)
    tiles = [("trials", f"{done} of {summary.budget}" if summary.budget > done else str(done))]
    if summary.failed:
        tiles.append(("failed", str(len(summary.failed))))
    if len(summary.objectives) > 1:
        tiles.append(("on the front", str(len(summary.front))))
        tiles += _front_tiles(summary)
    tiles.append(("genes", str(len(summary.genes))))
    tiles.append(("time", wording.duration(summary.wall_seconds)))
    if summary.wall_seconds > 0 and done:
        tiles.append(("trials per minute", f"{60 * done / summary.wall_seconds:.3g}"))
    return tiles


def _front_tiles(summary: RunSummary) -> list[tuple[str, str]]:
    found = summary.quality
    if found is None:
        return []
    measures = {"hypervolume": found.hypervolume, "spread": found.spread, "IGD+": found.igd_plus}
    return [(label, wording.number(value)) for label, value in measures.items() if value is not None]


def _front_note(summary: RunSummary) -> str:
    """Return what the measures of the front mean; empty without a front."""
    found = summary.quality
    if found is None:
        return ""
    parts = [
        f"Hypervolume: what the front dominates beyond {wording.reference_point(summary)}, the worst of parents, base "
        "and uniform merge."
    ]
    if found.spread is not None:
        ends = "" if found.igd_plus is None else " and reach the known front's ends"
        parts.append(f"Spread: 0 when neighbours on the front are equally far apart{ends}.")
    if found.igd_plus is not None:
        parts.append(
            "IGD+: the mean distance from the known front, in units of its ranges; 0 when all of it is reached."
        )
    if found.size != len(summary.front):
        parts.append(f"They are of the {found.size} trials on the front before estimates were revised.")
    return " ".join(parts)


def _figure_sections(summary: RunSummary, figures: Figures) -> dict[str, list[tuple[str, str]]]:
    """Return the figures (name, caption) of the front and of the progress section."""
    if not summary.complete:
        return {"front": [], "progress": []}
    front: list[tuple[str, str]] = []
    if len(summary.objectives) > 1:
        searched, confirmed = front_figures(summary)
        estimated = "; the scores are estimates, the front's with 95% intervals" if summary.estimates else ""
        predicted = ", and the front that surrogates predict" if summary.surrogates else ""
        front.append((figures.add("front", searched), f"On the search items: every trial{predicted}{estimated}"))
        if confirmed is not None:
            points = "; points of the predicted front are where they scored" if summary.predictions else ""
            front.append((figures.add("confirmed", confirmed), f"On the confirmation items: 95% intervals{points}"))
    if len(summary.objectives) > 2:
        front.append((figures.add("profile", profile_figure(summary)), "Front and references across all objectives"))
    progress = [
        (figures.add(f"progress-{i}", progress_figure(summary, objective)), objective.title)
        for i, objective in enumerate(summary.objectives)
    ]
    if len(summary.objectives) > 1 and summary.hypervolume:
        progress.append((figures.add("hypervolume", hypervolume_figure(summary)), "hypervolume"))
    if len(summary.objectives) > 1 and summary.igd_plus:
        progress.append((figures.add("igd-plus", igd_plus_figure(summary)), "IGD+ (smaller is better)"))
    return {"front": front, "progress": progress}


def _gene_panes(summary: RunSummary, figures: Figures) -> list[dict[str, Any]]:
    """Return one pane an objective: its name, the bars and, for genes over depth, the heat map."""
    found = importance(summary.trials, summary.objectives, summary.labels)
    order = {gene: index for index, gene in enumerate(summary.genes)}
    panes = []
    for index, (name, genes) in enumerate(found.items()):
        in_genome = sorted(genes, key=lambda gene: order.get(gene.gene, len(order)))
        panes.append(_gene_pane(index, name, genes, in_genome, figures))
    return panes


def _gene_pane(
    index: int,
    name: str,
    largest_first: Sequence[GeneImportance],
    in_genome: Sequence[GeneImportance],
    figures: Figures,
) -> dict[str, Any]:
    names = [figures.add(f"genes-{index}", importance_figure(largest_first))]
    table = over_depth({gene.gene: gene.share for gene in in_genome})
    if table is not None:
        names.append(figures.add(f"genes-depth-{index}", depth_figure(table, share=True)))
    return {"name": name, "figures": names}


def _gene_note(summary: RunSummary) -> str:
    complete, genes = len(summary.complete), len(set(summary.genes).difference(summary.labels))
    if complete < FEWEST_TRIALS:
        return f"Shown from {FEWEST_TRIALS} complete trials on."
    cut = f"The {TOP_GENES} largest of {genes} genes. " if genes > TOP_GENES else ""
    doubt = f" With {complete} trials for {genes} genes this is a hint, no more." if complete < 5 * genes else ""
    return (
        f"{cut}fANOVA: the share of the objective's variance that a gene explains alone, over the trials. "
        f"Colour: whether more of the gene goes with better (blue) or worse (red) scores.{doubt}"
    )


def _winner(summary: RunSummary, figures: Figures) -> dict[str, Any] | None:
    """Return what the pick is called, its sources and its path, if it has any, and its genome's figures."""
    genomes: dict[int | None, Genome] = {trial.number: trial.genome for trial in summary.trials}
    genomes |= {row.trial: row.predicted.genome for row in summary.predictions if row.predicted}
    genome, winner = genomes.get(summary.pick), summary.winner
    if genome is None:
        return None
    amounts = {name: value for name, value in genome.items() if name not in summary.labels}
    numeric = {name: float(value) for name, value in amounts.items() if not isinstance(value, str)}
    table = over_depth(numeric)
    others = numeric if table is None else without_depth(numeric)
    drawn = []
    if table is not None:
        drawn.append(figures.add("winner-depth", depth_figure(table, share=False)))
    if others:
        drawn.append(figures.add("winner-genes", genome_figure(others)))
    label = winner.label if winner else f"trial {summary.pick}"
    predicted = winner is not None and winner.predicted is not None
    return {
        "label": label,
        "predicted": predicted,
        "sources": _sources(summary.crossing.sources) if summary.crossing else "",
        "path": _path(summary, figures),
        "figures": drawn,
    }


def _sources(sources: Sequence[str]) -> str:
    """Return in words what a trial was crossed from."""
    found = list(dict.fromkeys(sources))
    return f"made from {found[0]} alone" if len(found) == 1 else f"crossed from {' and '.join(found)}" if found else ""


def _path(summary: RunSummary, figures: Figures) -> dict[str, Any] | None:
    """Return the figure of the picked trial's path, the path in words and how to read it; None without a path."""
    recipe, names = winner_recipe(summary), summary.names
    if recipe is None or (figure := path_figure(recipe, names)) is None:
        return None
    words = path_in_words(recipe, names)
    return {"figure": figures.add("winner-path", figure), "words": words, "note": path_note(recipe)}


def _estimates(summary: RunSummary, figures: Figures) -> dict[str, Any] | None:
    """Return what the section on estimated scores shows; None where scores are exact."""
    found = summary.estimates
    if found is None:
        return None
    captions = estimates.check_captions(found, summary.objectives)
    drawn = [o for o in summary.objectives if o.name in captions]
    return {
        "method": estimates.method(found),
        "cost": estimates.cost(found),
        "columns": estimates.cost_columns(found),
        "costs": estimates.cost_rows(found),
        "soft": found.total.soft,
        "checks": [
            (
                figures.add(f"estimates-{index}", estimates.check_figure(found.checks[o.name], summary.pick)),
                captions[o.name],
            )
            for index, o in enumerate(drawn)
        ],
        "ability_columns": estimates.ability_columns(found, summary.objectives),
        "abilities": estimates.ability_rows(found, summary.objectives),
        "ability_note": estimates.ability_note(found),
    }


def _surrogates(summary: RunSummary, figures: Figures) -> dict[str, Any] | None:
    """Return what the section on surrogates shows; None where there are none."""
    found = summary.surrogates
    if found is None:
        return None
    captions = surrogates.captions(found, summary.objectives)
    drawn = [o for o in summary.objectives if o.name in captions]
    return {
        "outdated": wording.capital(surrogates.outdated(found, len(summary.complete))),
        "columns": surrogates.columns(found),
        "rows": surrogates.rows(found),
        "doubts": surrogates.doubts(found),
        "figures": [
            (
                figures.add(f"surrogates-{index}", surrogates.figure(found.foretold[o.name], summary.pick)),
                captions[o.name],
            )
            for index, o in enumerate(drawn)
        ],
        "confirmed": [
            (
                figures.add(
                    f"predictions-{index}", surrogates.figure(found.confirmed[name], summary.pick, "prediction")
                ),
                caption,
            )
            for index, (name, caption) in enumerate(surrogates.captions_confirmed(found, summary.objectives).items())
        ],
        "worst": surrogates.worst_rows(found),
        "predicted": wording.capital(surrogates.predicted(found, summary.folder)),
    }


def _tree(summary: RunSummary) -> dict[str, Any] | None:
    """Return what the section on a nested run's tree shows; None for other runs."""
    if not summary.tree:
        return None
    return {"columns": [o.title for o in summary.objectives], "rows": tree.rows(summary)}


def _kinship(summary: RunSummary, figures: Figures) -> tuple[str, str] | None:
    """Return figure and caption of the parents' kinship; None where the searcher does not ask for it."""
    if summary.kinship is None:
        return None
    figure, caption = kinship_figure(summary.kinship)
    return figures.add("kinship", figure), caption


def _yaml(text: str) -> Markup:
    return Markup(highlight(text, YamlLexer(), HtmlFormatter(nowrap=True)))


def _shares(summary: RunSummary) -> dict[str, Any] | None:
    """Return the truncated and unextracted shares of references and winner; None when all are zero."""
    rows: list[ReferenceRow | TrialRow] = [*summary.references]
    rows += [trial for trial in summary.trials if trial.number == summary.pick]
    tasks = list(dict.fromkeys(task for row in rows for task in (*row.truncated, *row.unextracted)))
    if not any(any(shares.values()) for row in rows for shares in (row.truncated, row.unextracted)):
        return None
    lines = [
        {
            "label": row.name if isinstance(row, ReferenceRow) else f"trial {row.number}",
            "cells": [(row.truncated.get(task), row.unextracted.get(task)) for task in tasks],
        }
        for row in rows
    ]
    return {"tasks": tasks, "rows": lines}


def _failures(summary: RunSummary) -> dict[str, Any] | None:
    """Return the kinds of error with their counts, and the first traceback."""
    if not summary.failed:
        return None
    kinds = Counter(_last_line(trial.error) for trial in summary.failed)
    return {"kinds": kinds.most_common(10), "first": summary.failed[0], "more": max(0, len(kinds) - 10)}


def _last_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[-1] if lines else "no message"


def _time(trials: Sequence[TrialRow]) -> dict[str, Any] | None:
    """Return what the section on time shows; None when nothing was timed."""
    found = timings.timings(trials)
    if found is None:
        return None
    return {
        "parts": timings.parts(found),
        "driver": timings.driver_line(found),
        "limit": timings.limit(found),
        "workers": timings.worker_totals(trials),
    }
