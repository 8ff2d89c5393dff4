"""What a model card says, as plain frozen values; ``evomerge.export.card`` renders them.

A card for a merge without a search leaves ``search``, ``objectives``, ``scores`` and ``comparisons`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from evomerge.export.licences import Licence
from evomerge.recipes import NamedRecipe, Recipe


@dataclass(frozen=True)
class ParentInfo:
    """One parent of the merge, as the card names it.

    Args:
        reference: what the recipe calls it: a Hub id, a zoo name or a folder.
        nickname: the experiment file's name for it; empty where there is none.
        is_base: whether the others were fine-tuned from it.
        licence: what its own card says, in words; empty where it says nothing.
        hub_id: its repository, where it came from the Hub; only these can stand in the card's metadata.
        revision: the commit that was merged, where it came from the Hub.
    """

    reference: str
    nickname: str = ""
    is_base: bool = False
    licence: str = ""
    hub_id: str = ""
    revision: str = ""


@dataclass(frozen=True)
class ObjectiveInfo:
    """One objective: the key of its scores, and where the number comes from."""

    name: str
    task: str
    metric: str
    direction: Literal["maximize", "minimize"] = "maximize"


@dataclass(frozen=True)
class Score:
    """A score on the confirmation items, in its natural direction, with its 95% interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ScoreRow:
    """One model's line in the table of results.

    Args:
        model: the name shown.
        kind: ``winner`` is this model; its scores go into the card's metadata.
        scores: objective name → score.
        mean: the mean over the objectives, where it was computed.
    """

    model: str
    kind: Literal["winner", "parent", "base", "uniform"]
    scores: Mapping[str, Score]
    mean: Score | None = None


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of the winner with a rival, on the same confirmation items.

    Args:
        rival: the other model's name.
        objective: an objective's name, or words such as ``mean over the tasks``.
        difference: winner − rival, positive when the winner is better; ``low``, ``high``: its 95% interval.
        p_value: two-sided.
        test: the test's name, in words.
    """

    rival: str
    objective: str
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    test: str = ""


@dataclass(frozen=True)
class EstimateInfo:
    """How the search estimated its trials' scores from a few items.

    Args:
        kind: the estimator.
        items: task → the fewest and the most items that a trial was asked.
        bank: the name of the item bank; empty where the run made its own.
        merges: how many random merges it made that from, beside the parents.
        soft: whether the probabilities of right answers were used too.
    """

    kind: str
    items: Mapping[str, tuple[int, int]]
    bank: str = ""
    merges: int = 0
    soft: bool = False


@dataclass(frozen=True)
class SearchInfo:
    """How the recipe was found.

    Args:
        search_items: task → number of items that the search scored its trials on, or estimated their scores on.
        confirmation_items: task → number of items, none of them among the search items, of the results below.
        shared_items: tasks whose items cannot be split (functions that declare none): confirmed on the same ones.
        front_size: trials that were confirmed; None before that.
        predictions: points of the front that surrogates predict that were confirmed too.
        trial: the number of the trial that this model is; ``pick`` says by which rule it was chosen.
        is_predicted: whether it is no trial but one of these points, numbered on after the trials.
        estimate: how scores were estimated; None where they are exact.
        before: a line for each search whose pick this one merged.
    """

    search_space: str
    searcher: str
    seed: int
    trials: int
    failed_trials: int = 0
    front_size: int | None = None
    predictions: int = 0
    trial: int | None = None
    is_predicted: bool = False
    pick: str = ""
    search_items: Mapping[str, int] = field(default_factory=dict)
    confirmation_items: Mapping[str, int] = field(default_factory=dict)
    shared_items: tuple[str, ...] = ()
    estimate: EstimateInfo | None = None
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class CardData:
    """Everything that a model card says.

    Args:
        title: the heading, and the model's name in the Hub's table of results.
        recipe: how the model was merged.
        parents: in the order in which they are shown.
        licence: what ``resolve_licence`` found.
        languages: ISO 639 codes; ``datasets``: Hub ids, as the parents' own cards name them.
        notes: lines for the reader, such as ``token_disagreements`` and shares of cut-off generations.
        stages: the stages of a multi-stage merge, of which ``recipe`` is the last; empty for any other.
        plain: whether it is plain tensors, of no language model.
    """

    title: str
    recipe: Recipe
    parents: tuple[ParentInfo, ...]
    licence: Licence
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    search: SearchInfo | None = None
    objectives: tuple[ObjectiveInfo, ...] = ()
    scores: tuple[ScoreRow, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    stages: tuple[NamedRecipe, ...] = ()
    plain: bool = False
