"""The model card: README.md with the Hub's metadata on top and, below it, what the model is and how good.

The text says which items the search used and which ones the results come from: a search keeps the best of
many noisy scores, so its own scores are too high.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from evomerge import __version__
from evomerge.checkpoints import Checkpoint, resolve
from evomerge.checkpoints.checkpoint import names_no_architecture
from evomerge.errors import ConfigError
from evomerge.export.card_data import CardData, Comparison, EstimateInfo, ParentInfo, Score, ScoreRow, SearchInfo
from evomerge.export.licences import front_matter, resolve_licence
from evomerge.export.tokens import token_disagreements
from evomerge.merging import METHODS
from evomerge.merging.vocabulary import read_json
from evomerge.recipes import NamedRecipe, Recipe, stages_to_mergekit, write_recipes
from evomerge.recipes.path_text import path_in_words, recipe_in_words

TAGS = ("merge", "evomerge")
PLAIN_LIBRARY = "safetensors"  # what reads a folder of plain tensors
ROUTING = "layer routing; Akiba et al. 2025, https://arxiv.org/abs/2403.13187"
MERGE3 = "MERGE³, Mencattini et al. 2025, https://arxiv.org/abs/2502.10436"
MOST_STAGES = 12  # that a card tells one by one
_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/([^/]+)")


def folders_of(checkpoints: Mapping[str, Checkpoint]) -> dict[str, Path]:
    """Return reference → folder for a card; an adapter has a folder and a licence of its own beside its base's."""
    found: dict[str, Path] = {}
    for reference, checkpoint in checkpoints.items():
        first, *others = checkpoint.folders
        found |= {reference: first, **{f"{reference} ({folder.name})": folder for folder in others}}
    return found


def describe(
    recipe: Recipe,
    title: str,
    *,
    folders: Mapping[str, Path] | None = None,
    nicknames: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    **search: Any,
) -> CardData:
    """Return the card of a merge; licence, languages, data sets and token notes come from its parents.

    Args:
        recipe: how the model is merged.
        title: the card's heading.
        folders: reference → folder of each parent, where they are known already.
        nicknames: reference → the experiment file's name for that parent.
        notes: further lines for the reader.
        search: the fields of ``CardData`` that only a search fills: search, objectives, scores, comparisons.

    Raises:
        CheckpointError: a parent cannot be found.
    """
    folders = dict(folders or {reference: resolve(reference) for reference in recipe.parents()})
    licence = resolve_licence(folders)
    parents = tuple(
        ParentInfo(
            reference=one.parent,
            nickname=(nicknames or {}).get(one.parent, ""),
            is_base=one.parent == recipe.base_model,
            licence=one.label,
            **hub_origin(folders[one.parent]),
        )
        for one in licence.parents
    )
    cards = [front_matter(folder) for folder in folders.values()]
    return CardData(
        title,
        recipe,
        parents,
        licence,
        languages=_union(card.get("language") for card in cards),
        datasets=_union(card.get("datasets") for card in cards),
        notes=(*token_disagreements(folders), *notes),
        plain=all(names_no_architecture(read_json(folder / "config.json")) for folder in folders.values()),
        **search,
    )


def hub_origin(folder: Path) -> dict[str, str]:
    """Return ``hub_id`` and ``revision`` of a folder in the Hub's cache; empty for any other folder.

    The place says it, not the reference: ``models/math`` may be a folder, and also somebody's repository.
    """
    found = _SNAPSHOT.search(folder.as_posix())
    return {"hub_id": found[1].replace("--", "/", 1), "revision": found[2]} if found else {}


def render_card(card: CardData) -> str:
    """Return the whole README.md: YAML front matter that the Hub accepts, then Markdown."""
    sections = [
        _introduction(card),
        _parents(card),
        _results(card),
        _search(card.search) if card.search else [],
        _recipe(card),
        _usage(card),
        _notes(card),
    ]
    body = "\n\n".join("\n".join(lines) for lines in sections if lines)
    return f"---\n{metadata(card).to_yaml()}\n---\n\n{body}\n"


def metadata(card: CardData) -> ModelCardData:
    """Return the front matter; parents that are no Hub repository are left out, as the Hub refuses them."""
    base = list(dict.fromkeys(parent.hub_id for parent in card.parents if parent.hub_id))
    results = _eval_results(card)
    fields: dict[str, Any] = dict(card.licence.metadata)
    if base:
        fields |= {"base_model": base, "base_model_relation": "merge"}
    if results:
        fields |= {"eval_results": results, "model_name": card.title}
    return ModelCardData(
        language=list(card.languages) or None,
        datasets=list(card.datasets) or None,
        library_name=PLAIN_LIBRARY if card.plain else "transformers",
        pipeline_tag=None if card.plain else "text-generation",
        tags=[*TAGS, *(["mergekit-compatible"] if _mergekit_reads(card) else [])],
        **fields,
    )


def _eval_results(card: CardData) -> list[EvalResult]:
    winner = next((row for row in card.scores if row.kind == "winner"), None)
    if winner is None:
        return []
    return [
        EvalResult(
            task_type="other" if card.plain else "text-generation",
            dataset_type=one.task,
            dataset_name=one.task,
            dataset_split="confirmation items",
            metric_type=one.metric.split(",")[0],
            metric_name=one.name,
            metric_value=round(winner.scores[one.name].value, 6),
        )
        for one in card.objectives
        if one.name in winner.scores
    ]


def _introduction(card: CardData) -> list[str]:
    lines = [f"# {card.title}", ""]
    kind = "model" if card.plain else "language model"
    models = f"{len(card.parents)} {kind}s" if len(card.parents) > 1 else f"one {kind}"
    lines.append(f"A merge of {models}, made with evomerge {__version__}.")
    lines.append(_how(card))
    found = "The recipe was found by an evolutionary search; nothing" if card.search else "Nothing"
    lines.append(f"{found} was trained.")
    return lines


def _how(card: CardData) -> str:
    names = {parent.reference: parent.nickname for parent in card.parents if parent.nickname}
    recipe = card.stages[-1].recipe if card.stages else card.recipe  # in which stages go by their names
    if path := path_in_words(recipe, names):
        text = f"The hidden states take a path through layers of its parents ({ROUTING}): {path}."
    else:
        method = METHODS[card.recipe.merge_method]
        paper = f" ({method.paper})" if method.paper else ""
        text = f"The weights are combined with `{method.name}`{paper}: {method.summary.rstrip('.')}."
    if len(card.stages) > MOST_STAGES:
        return f"{text} It is made in {len(card.stages)} stages, all of which `recipe.yaml` holds."
    stages = [f"`{stage.name}` is {recipe_in_words(stage.recipe, names)}" for stage in card.stages if stage.name]
    return f"{text} It is made in stages: {'; '.join(stages)}." if stages else text


def _parents(card: CardData) -> list[str]:
    rows = [
        [
            _link(parent),
            parent.nickname,
            "base" if parent.is_base else "parent",
            parent.licence,
            parent.revision,
        ]
        for parent in card.parents
    ]
    table = _table(["model", "name", "role", "licence", "revision"], rows)
    return ["## Parents", "", *table, "", *_licence(card)]


def _link(parent: ParentInfo) -> str:
    if parent.hub_id:
        return f"[{parent.hub_id}](https://huggingface.co/{parent.hub_id})"
    return f"`{parent.reference}` (not on the Hub)"


def _licence(card: CardData) -> list[str]:
    licence = card.licence
    shown = f"{licence.id} ({licence.name})" if licence.name else licence.id
    lines = [f"**Licence:** {shown}: {licence.reason}."]
    return lines + [f"\n> **To do:** {problem}." for problem in licence.problems]


def _results(card: CardData) -> list[str]:
    if not card.scores:
        return []
    columns = list(card.objectives)
    heads = [f"{one.name} ({'higher' if one.direction == 'maximize' else 'lower'} is better)" for one in columns]
    has_mean = any(row.mean for row in card.scores)
    rows = [[_name(row), *(_score(row.scores.get(one.name)) for one in columns)] for row in card.scores]
    if has_mean:
        heads.append("mean")
        rows = [[*cells, _score(row.mean)] for cells, row in zip(rows, card.scores, strict=True)]
    lines = ["## Results on held-out items", "", *_table(["model", *heads], rows), ""]
    lines.append(f"In brackets: 95% confidence intervals. {_held_out(card.search)}")
    tasks = ", ".join(f"`{one.name}` is {one.metric} of {one.task}" for one in columns)
    lines += [f"Metrics: {tasks}."] if tasks else []
    if card.comparisons:
        lines += ["", "This model minus a rival, paired item by item:", "", *_comparisons(card.comparisons)]
    return lines


def _comparisons(comparisons: Sequence[Comparison]) -> list[str]:
    rows = []
    for one in comparisons:
        difference = _interval(f"{one.difference:+.3f}", one.low, one.high, "+.3f")
        rows.append([one.rival, one.objective, difference, _p_value(one.p_value), one.test])
    return _table(["rival", "on", "difference", "p-value (two-sided)", "test"], rows)


def _search(search: SearchInfo) -> list[str]:
    failed = f", of which {search.failed_trials} failed" if search.failed_trials else ""
    lines = ["## The search", "", f"- search space: {search.search_space}"]
    lines += [f"- searcher: {search.searcher}, seed {search.seed}"]
    lines += [f"- before: {line}" for line in search.before]
    lines += [f"- trials: {search.trials}{failed}"]
    if search.front_size is not None:
        also = f", and {search.predictions} points of the front that surrogates predict" if search.predictions else ""
        lines.append(f"- Pareto front: {search.front_size} trials{also}")
    if search.trial is not None:
        name = f"{'prediction' if search.is_predicted else 'trial'} {search.trial}"
        lines.append(f"- this model: {name}" + (f", picked by {search.pick}" if search.pick else ""))
    if search.is_predicted:
        lines.append(
            f"- it was predicted by surrogates fitted to the {search.trials - search.failed_trials} trials with "
            "scores, and never evaluated in the search: only on the held-out items"
        )
    tasks = list(dict.fromkeys([*search.search_items, *search.confirmation_items]))
    counts = [
        [task, _count(search.search_items, task), _asked(search, task), _count(search.confirmation_items, task)]
        for task in tasks
    ]
    if counts:
        heads = ["task", "search items", "of which a trial answered", "held-out items"]
        lines += ["", *_table(heads, counts), ""]
        lines += [_estimation(search.estimate), ""] if search.estimate else []
        lines += [_winners_curse(search)]
    return lines


def _asked(search: SearchInfo, task: str) -> str:
    """Return how many items a trial was asked; nothing where scores are exact."""
    if search.estimate is None:
        return ""
    fewest, most = search.estimate.items.get(task, (0, 0))
    return str(most) if fewest == most else f"{fewest}–{most}"


def _estimation(estimate: EstimateInfo) -> str:
    merges = f"its parents and of {estimate.merges} random merges of them"
    bank = f"the item bank `{estimate.bank}`" if estimate.bank else f"item banks made from all responses of {merges}"
    soft = " and from the probabilities of right answers" if estimate.soft else ""
    return (
        f"The scores of trials on the search items were not measured but estimated ({estimate.kind}; {MERGE3}), "
        f"from the responses to a few of them{soft}, with {bank}."
    )


def _winners_curse(search: SearchInfo) -> str:
    noise = "an error of estimation and sampling noise" if search.estimate else "sampling noise"
    text = (
        f"The search kept the best of {search.trials} scores, each with {noise}, so its scores on the "
        "search items are too high (the winner's curse). The results above come from other items, which the "
        "search never saw."
    )
    picked_from = (search.front_size or 0) + search.predictions
    if picked_from > 1:
        text += (
            f" The model was picked among the {picked_from} of the front by its results on those same "
            "held-out items: a little of that optimism remains."
        )
    if search.before:
        text += " The picks of the searches before it were made on these items too, which adds to that."
    return text


def _recipe(card: CardData) -> list[str]:
    stages = card.stages or (NamedRecipe(card.recipe),)
    where = "The same text is in `recipe.yaml`"
    if len(stages) > MOST_STAGES:
        where = f"This is the last of its {len(stages)} stages; `recipe.yaml` holds them all"
        stages = stages[-1:]
    return [
        "## Recipe",
        "",
        f"{where}{'; mergekit reads it too' if _mergekit_reads(card) else ''}.",
        "",
        "```yaml",
        write_recipes(stages).rstrip(),
        "```",
        "",
        "To make the same weights again:",
        "",
        "```bash",
        "pip install evomerge",
        "evomerge merge recipe.yaml out",
        "```",
    ]


def _mergekit_reads(card: CardData) -> bool:
    if card.plain:
        return False  # it asks every model for its config
    try:
        stages_to_mergekit(card.stages or (NamedRecipe(card.recipe),))
    except ConfigError:  # a method or field that mergekit has not
        return False
    return True


def _usage(card: CardData) -> list[str]:
    if card.plain:
        return [
            "## Use",
            "",
            "The weights are plain tensors, to be put into the model that they are of:",
            "",
            "```python",
            "from safetensors.torch import load_file",
            "",
            'tensors = load_file("model.safetensors")',
            "```",
        ]
    return [
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."  # this repository\'s name, or the folder it was downloaded to',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        'inputs = tokenizer("...", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))",
        "```",
    ]


def _notes(card: CardData) -> list[str]:
    return ["## Notes", "", *(f"- {note}" for note in card.notes)] if card.notes else []


def _held_out(search: SearchInfo | None) -> str:
    if search is None or not search.shared_items:
        return "No item here was used by the search."
    tasks = ", ".join(search.shared_items)
    return f"No item here was used by the search, except for {tasks}: measured on the search's own items, not held out."


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rows = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    heads = [head.replace("|", "\\|") for head in heads]
    used = [i for i in range(len(heads)) if i == 0 or any(row[i] for row in rows)]
    lines = [[heads[i] for i in used], ["---"] * len(used), *([row[i] for i in used] for row in rows)]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _name(row: ScoreRow) -> str:
    if row.kind == "winner":
        return f"**{row.model}**"
    return row.model if row.model.startswith(row.kind) else f"{row.model} ({row.kind})"


def _score(score: Score | None) -> str:
    return _interval(f"{score.value:.3f}", score.low, score.high, ".3f") if score else "–"


def _interval(shown: str, low: float | None, high: float | None, form: str) -> str:
    return shown if low is None or high is None else f"{shown} [{low:{form}}, {high:{form}}]"


def _p_value(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _count(items: Mapping[str, int], task: str) -> str:
    return str(items[task]) if task in items else "–"


def _union(values: Iterable[Any]) -> tuple[str, ...]:
    lists = [value if isinstance(value, list) else [value] for value in values]
    return tuple(dict.fromkeys(one for values in lists for one in values if isinstance(one, str)))
