"""The experiment file: what is refused, with its place; what it resolves to."""

from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.experiments.schema import ExperimentConfig, parse_experiment, write_experiment
from evomerge.recipes import yaml

WHOLE = """\
name: tiny
base: zoo/base
parents: {math: zoo/math-en, ja: zoo/lang-ja}
search_space: {kind: parameter, method: ties, granularity: layer, groups: [mlp]}
fitness:
  objectives:
    - {task: arithmetic_ja, metric: exact_match}
searcher: {kind: nsga2, population: 12}
"""


def parse(text: str, *overrides: str, folder: Path | None = None) -> ExperimentConfig:
    return parse_experiment(yaml.loads(text, "e.yaml"), overrides, folder=folder)


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, *overrides)
    return str(caught.value)


def test_all_problems_come_at_once_with_lines_and_nearest_names() -> None:
    text = WHOLE.replace("metric:", "metrc:").replace("groups", "grups").replace("nsga2", "nsga3") + "budgett: 3\n"
    message = refused(text)
    assert "e.yaml:7: fitness.objectives[0].metrc: unknown field 'metrc'\n    → did you mean 'metric'?" in message
    assert "e.yaml:4: search_space.grups: unknown field 'grups'\n    → did you mean 'groups'?" in message
    assert "e.yaml:8: searcher.kind: unknown searcher 'nsga3'\n    → did you mean 'nsga2'?" in message
    assert "e.yaml:9: budgett: unknown field 'budgett'\n    → did you mean 'budget'?" in message
    assert message.count("e.yaml:") == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("parents: {math: zoo/math-en, ja: zoo/lang-ja}\n", ""), "missing field 'parents'"),
        (("ja: zoo/lang-ja", "base: zoo/lang-ja"), "'base' cannot name a model"),
        (("name: tiny", "name: ../tiny"), "e.yaml:1: name:"),
        (
            ("name: tiny", "pick: best"),
            "the pick must be best-mean, knee, objective:NAME, prefer:NAME=WEIGHT,… or trial:N",
        ),
        (("name: tiny", "name: tiny\nbudget: {trials: 0}"), "greater than or equal to 1"),
        (("name: tiny", "name: tiny\nname: other"), "the key 'name' is written twice"),
        (("name: tiny", "dtype: int4"), "e.yaml:1: dtype: 'int4' is not a valid value"),
    ],
)
def test_bad_values_are_refused(change: tuple[str, str], message: str) -> None:
    assert message in refused(WHOLE.replace(*change))


def test_the_resolved_text_reads_back_as_the_same_experiment() -> None:
    experiment = parse(WHOLE)
    again = parse(write_experiment(experiment))
    assert again.model_dump() == experiment.model_dump()


def test_set_overrides_a_field_of_any_depth() -> None:
    experiment = parse(WHOLE, "budget.trials=7", "searcher.seed=3", "fitness.objectives.0.weight=2.5", "pick=knee")
    assert (experiment.budget.trials, experiment.searcher.seed, experiment.pick) == (7, 3, "knee")
    assert experiment.fitness.objectives[0].weight == 2.5


def test_set_opens_up_a_searcher_given_by_name() -> None:
    text = WHOLE.replace("searcher: {kind: nsga2, population: 12}", "searcher: nsga2")
    assert parse(text, "searcher.seed=3").searcher.seed == 3


@pytest.mark.parametrize("override", ["budget.trials", "=3", "fitness.objectives.4.weight=1", "budget.trails=3"])
def test_a_bad_override_is_refused(override: str) -> None:
    assert refused(WHOLE, override)


def test_relative_paths_are_taken_from_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "score.py").write_text("")
    text = WHOLE.replace("zoo/math-en", "./mine").replace("zoo/base", "mine")
    text = text.replace("{task: arithmetic_ja, metric: exact_match}", '{function: "./score.py:f"}')
    experiment = parse(text, folder=tmp_path)
    assert experiment.parents == {"math": str(tmp_path / "mine"), "ja": "zoo/lang-ja"}
    assert experiment.base == str(tmp_path / "mine")
    assert experiment.fitness.objectives[0].function == f"{tmp_path / 'score.py'}:f"
    beside = parse(text.replace("./score.py:f", "score:f"), folder=tmp_path)
    assert beside.fitness == experiment.fitness


def test_base_is_a_reference_model_beside_the_parents() -> None:
    assert parse(WHOLE).references == {"base": "zoo/base", "math": "zoo/math-en", "ja": "zoo/lang-ja"}
    assert parse(WHOLE.replace("base: zoo/base\n", "")).references == {
        "math": "zoo/math-en",
        "ja": "zoo/lang-ja",
    }
