"""The model card: metadata that the Hub takes, and a text that says what was measured on which items."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from evomerge.export.card import describe, hub_origin, render_card
from evomerge.export.card_data import (
    CardData,
    Comparison,
    EstimateInfo,
    ObjectiveInfo,
    ParentInfo,
    Score,
    ScoreRow,
    SearchInfo,
)
from evomerge.export.licences import StatedLicence, combine
from evomerge.recipes import NamedRecipe, PathStep, Recipe, parse_recipe, parse_recipes, routed_recipe
from evomerge.testing.tiny_models import tiny_family

RECIPE = parse_recipe("""
merge_method: task_arithmetic
base_model: owner/base
models:
  - model: owner/math
    parameters: {weight: 0.6}
  - model: zoo/lang-ja
    parameters: {weight: [0.2, 0.8]}
dtype: float32
""")
PARENTS = (
    ParentInfo("owner/math", "math", licence="apache-2.0", hub_id="owner/math", revision="abc"),
    ParentInfo("zoo/lang-ja", "japanese", licence="mit"),
    ParentInfo("owner/base", is_base=True, licence="apache-2.0", hub_id="owner/base"),
)
LICENCE = combine([StatedLicence(one.reference, one.licence) for one in PARENTS])
PLAIN = CardData("math-ja", RECIPE, PARENTS, LICENCE)
SEARCHED = dataclasses.replace(
    PLAIN,
    languages=("en", "ja"),
    search=SearchInfo(
        "parameter space",
        "nsga2",
        seed=7,
        trials=120,
        failed_trials=2,
        front_size=9,
        trial=88,
        pick="best-mean",
        search_items={"arithmetic_ja": 60},
        confirmation_items={"arithmetic_ja": 200},
    ),
    objectives=(ObjectiveInfo("ja", "arithmetic_ja", "exact_match,none"),),
    scores=(
        ScoreRow("math-ja", "winner", {"ja": Score(0.9, 0.85, 0.94)}, Score(0.9)),
        ScoreRow("math", "parent", {"ja": Score(0.5)}, Score(0.5)),
        ScoreRow("uniform merge", "uniform", {}, Score(0.6)),
    ),
    comparisons=(Comparison("uniform merge", "mean", 0.3, 0.21, 0.39, 0.00001, "paired permutation"),),
    notes=("the parents differ in the eos_token",),
)


def front(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


def test_metadata_names_only_parents_of_the_hub() -> None:
    data = front(render_card(PLAIN))
    assert data["base_model"] == ["owner/math", "owner/base"]
    assert data["base_model_relation"] == "merge"
    assert data["tags"] == ["merge", "evomerge", "mergekit-compatible"]
    assert data["library_name"] == "transformers"
    assert data["license"] == "apache-2.0"
    assert "model-index" not in data
    assert "language" not in data


def test_local_parents_are_named_in_the_text_and_leave_no_empty_metadata() -> None:
    local = dataclasses.replace(PLAIN, parents=PARENTS[1:2])
    assert "base_model" not in front(render_card(local))
    assert "base_model_relation" not in front(render_card(local))
    assert "`zoo/lang-ja` (not on the Hub)" in render_card(local)


def test_the_hubs_own_class_reads_the_card_back_with_its_results() -> None:
    card = ModelCard(render_card(SEARCHED))
    assert card.data.language == ["en", "ja"]
    (result,) = card.data.eval_results or []
    assert (result.dataset_name, result.metric_type, result.metric_value) == (
        "arithmetic_ja",
        "exact_match",
        0.9,
    )
    assert card.data.model_name == "math-ja"


def test_the_recipe_on_the_card_is_the_recipe() -> None:
    text = render_card(PLAIN).split("```yaml\n")[1].split("```")[0]
    assert parse_recipe(text) == RECIPE
    assert "evomerge merge recipe.yaml out" in render_card(PLAIN)


def test_results_show_intervals_rivals_and_p_values() -> None:
    text = render_card(SEARCHED)
    assert "| **math-ja** | 0.900 [0.850, 0.940] | 0.900 |" in text
    assert "| math (parent) | 0.500 | 0.500 |" in text
    assert "| uniform merge | – | 0.600 |" in text
    assert "| uniform merge | mean | +0.300 [+0.210, +0.390] | < 0.001 | paired permutation |" in text


def test_the_search_says_which_items_it_used_and_warns_of_the_winners_curse() -> None:
    text = render_card(SEARCHED)
    for words in (
        "- searcher: nsga2, seed 7",
        "- trials: 120, of which 2 failed",
        "- this model: trial 88, picked by best-mean",
        "| arithmetic_ja | 60 | 200 |",
        "winner's curse",
        "picked among the 9 of the front",
        "- the parents differ in the eos_token",
    ):
        assert words in text


def test_estimated_scores_are_called_that_with_the_items_asked_and_the_bank() -> None:
    assert "stimate" not in render_card(SEARCHED)

    def text(estimate: EstimateInfo) -> str:
        assert SEARCHED.search is not None
        return render_card(
            dataclasses.replace(SEARCHED, search=dataclasses.replace(SEARCHED.search, estimate=estimate))
        )

    own = text(EstimateInfo("gmp-irt", {"arithmetic_ja": (20, 20)}, merges=12))
    assert "| arithmetic_ja | 60 | 20 | 200 |" in own
    assert "estimated (gmp-irt; MERGE³" in own
    assert "with item banks made from all responses of its parents and of 12 random merges of them." in own
    assert "an error of estimation" in own
    assert "probabilities" not in own
    named = text(EstimateInfo("p-irt", {"arithmetic_ja": (5, 20)}, bank="mine", soft=True))
    assert "| arithmetic_ja | 60 | 5–20 | 200 |" in named
    assert "with the item bank `mine`." in named
    assert "probabilities of right answers" in named


def test_a_plain_merge_says_nothing_of_a_search() -> None:
    text = render_card(PLAIN)
    assert "search" not in text
    assert "Results" not in text
    assert "arxiv.org/abs/2212.04089" in text


def test_an_unknown_licence_stands_in_metadata_and_text() -> None:
    card = dataclasses.replace(PLAIN, licence=combine([StatedLicence("zoo/x", "unknown")]))
    assert front(render_card(card))["license"] == "other"
    assert front(render_card(card))["license_name"] == "unknown"
    assert "**To do:** no licence is stated by zoo/x" in render_card(card)


def test_a_bar_in_a_name_does_not_break_a_table() -> None:
    rows = (ScoreRow("a|b", "winner", {"ja": Score(0.5)}),)
    assert "| **a\\|b** | 0.500 |" in render_card(dataclasses.replace(SEARCHED, scores=rows))


def test_where_a_folder_lies_says_whether_it_came_from_the_hub(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name-x" / "snapshots" / "0123abc"
    assert hub_origin(snapshot) == {"hub_id": "owner/name-x", "revision": "0123abc"}
    assert hub_origin(tmp_path / "owner" / "name") == {}


def test_describe_reads_the_parents_folders(tmp_path: Path) -> None:
    family = tiny_family(tmp_path, parents=2)
    (family["a"] / "README.md").write_text("---\nlicense: mit\nlanguage: en\ndatasets: [owner/set]\n---\n")
    (family["b"] / "README.md").write_text("---\nlicense: gpl-3.0\nlanguage: [ja, en]\n---\n")
    recipe = parse_recipe(f"""
merge_method: linear
models:
  - {{model: {family["a"]}, parameters: {{weight: 1}}}}
  - {{model: {family["b"]}, parameters: {{weight: 1}}}}
""")
    card = describe(recipe, "mix", nicknames={str(family["a"]): "A"}, notes=["a note"])
    assert card.licence.id == "gpl-3.0"
    assert (card.languages, card.datasets, card.notes) == (("en", "ja"), ("owner/set",), ("a note",))
    assert [(one.nickname, one.licence) for one in card.parents] == [("A", "mit"), ("", "gpl-3.0")]
    assert front(render_card(card))["license"] == "gpl-3.0"


def routed(*path: PathStep) -> Recipe:
    return routed_recipe(path, outside="owner/math", dtype="float32")


def test_a_routed_model_tells_its_path_by_nicknames_and_gives_its_paper() -> None:
    recipe = routed(PathStep("owner/math", 0), PathStep("owner/math", 1), PathStep("zoo/lang-ja", 1, -0.9))
    text = " ".join(render_card(dataclasses.replace(PLAIN, recipe=recipe)).split())
    assert "math 0–1, japanese 1 (×−0.9): 3 layers; embeddings and head: math." in text
    assert "arxiv.org/abs/2403.13187" in text
    assert "weights are combined" not in text
    assert "path" not in render_card(PLAIN).lower()


def test_a_merge_in_stages_tells_what_each_stage_is() -> None:
    last = routed(PathStep("merged", 0), PathStep("zoo/lang-ja", 1))
    stages = (NamedRecipe(RECIPE, "merged"), NamedRecipe(last, uses=("merged",)))
    text = render_card(dataclasses.replace(PLAIN, recipe=last, stages=stages))
    assert "merged 0, japanese 1: 2 layers; embeddings and head: math. It is made in stages: " in text
    assert "stages: `merged` is task_arithmetic of math, japanese and owner/base." in text
    written = text.split("```yaml\n")[1].split("```")[0]
    assert [stage.recipe for stage in parse_recipes(written)] == [RECIPE, last]


@pytest.mark.parametrize("card", [PLAIN, SEARCHED], ids=["plain", "searched"])
def test_every_section_is_separated_by_a_blank_line(card: CardData) -> None:
    lines = render_card(card).splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("## ")]
    assert len(heads) >= 3
    assert all(lines[i - 1] == lines[i + 1] == "" for i in heads)


def test_a_merge_in_many_stages_leaves_them_to_its_recipe() -> None:
    named = tuple(NamedRecipe(RECIPE, f"stage-{number}") for number in range(20))
    text = render_card(dataclasses.replace(PLAIN, stages=(*named, NamedRecipe(RECIPE))))
    assert "It is made in 21 stages, all of which `recipe.yaml` holds." in text
    assert "This is the last of its 21 stages; `recipe.yaml` holds them all" in text
    assert "stage-7" not in text
