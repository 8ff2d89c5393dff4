"""mergekit-evolve files as experiments."""

import pytest

from evomerge.errors import ConfigError
from evomerge.experiments.mergekit_evolve import convert
from evomerge.experiments.schema import ExperimentConfig, parse_experiment
from evomerge.recipes import yaml

FILE = """\
genome:
    models:
      - acme/model-a
      - acme/model-b@main
      - other/model-a
    merge_method: dare_ties
    base_model: acme/base
    layer_granularity: 8
    normalize: false
    allow_negative_weights: true
    filters: [self_attn, mlp.down_proj, mlp]
tasks:
  - name: arithmetic_ja
    weight: 2.0
    metric: "exact_match,none"
  - name: perplexity_ja
    weight: -1.0
    metric: "perplexity,none"
  - arithmetic_en
num_fewshot: 3
limit: 50
"""


def converted(text: str = FILE) -> ExperimentConfig:
    return parse_experiment(convert(yaml.loads(text, "evolve.yml")))


def test_models_become_parents_with_distinct_nicknames() -> None:
    experiment = converted()
    assert experiment.parents == {
        "model-a": "acme/model-a",
        "model-b": "acme/model-b@main",
        "model-a-2": "other/model-a",
    }
    assert experiment.base == "acme/base"
    assert experiment.searcher.kind == "cma-es"


def test_tasks_become_objectives_and_negative_weights_minimise() -> None:
    first, second, third = converted().fitness.objectives
    assert (first.task, first.metric, first.weight, first.direction) == (
        "arithmetic_ja",
        "exact_match,none",
        2.0,
        None,
    )
    assert (second.weight, second.direction) == (1.0, "minimize")
    assert third.metric == "acc,none"
    assert {o.num_fewshot for o in (first, second, third)} == {3}
    assert {o.items for o in (first, second, third)} == {50}
    assert all(o.apply_chat_template for o in (first, second, third))


def test_granularity_filters_and_signs_become_a_search_space() -> None:
    space = converted().search_space.model_dump()
    assert space["method"] == "dare_ties"
    assert space["granularity"] in ({"block": 8}, "block: 8") or getattr(space["granularity"], "block", None) == 8
    assert list(space["groups"]) == [
        {"self_attn": "self_attn"},
        {"mlp_down_proj": r"mlp\.down_proj"},
        {"mlp_tensors": "mlp"},
    ]
    assert space["bounds"]["weight"][0] == -1.0
    assert space["fixed"] == {"normalize": False}


def test_defaults_are_mergekits() -> None:
    experiment = converted("genome: {models: [a/x, b/y], merge_method: linear}\ntasks: [t]\n")
    assert experiment.search_space.model_dump()["fixed"] == {"normalize": True}
    assert experiment.search_space.model_dump()["bounds"]["weight"][0] == 0.0
    assert experiment.fitness.objectives[0].metric == "acc,none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("merge_method: dare_ties", "merge_method: breadcrumbs"), "evolve.yml:1: genome"),
        (("layer_granularity", "layer_granularty"), "did you mean 'layer_granularity'"),
        (("num_fewshot", "num_fewshots"), "evolve.yml:20: num_fewshots: unknown field"),
    ],
)
def test_mistakes_are_refused_with_their_place(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(yaml.loads(FILE.replace(*change), "evolve.yml"))
    assert message in str(caught.value)
