"""Reading ``searcher:`` from an experiment, and what is refused before a search starts."""

import pytest

from evomerge.errors import ConfigError
from evomerge.recipes import yaml
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, IntGene
from evomerge.searchers import SEARCHERS, ObjectiveSpec, SearcherConfig, build_searcher, read_searcher

GENES = (FloatGene("weight", 0.0, 1.0, 0.5), ChoiceGene("method", ("linear", "ties"), "ties"))
SCORE = (ObjectiveSpec("score", "maximize"),)


def read(text):
    document = yaml.loads(text, "experiment.yaml")
    return read_searcher(document.data["searcher"], document, ("searcher",))


def test_a_name_alone_means_all_defaults():
    for name in SEARCHERS:
        assert read_searcher(name) == read_searcher({"kind": name}) == SEARCHERS[name].config()


def test_options_are_read():
    config = read("searcher: {kind: nsga2, population: 12, seed: 3}")
    assert (config.kind, config.population, config.seed) == ("nsga2", 12, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nsearcher: nsga", r"experiment.yaml:2: searcher: unknown searcher 'nsga'\n.*'nsga2'"),
        ("searcher:\n  kind: cma", r"experiment.yaml:2: searcher.kind: unknown searcher 'cma'\n.*'cma-es'"),
        (
            "searcher:\n  kind: 3",
            r"experiment.yaml:2: searcher.kind: unknown searcher 3\n.*valid names: cma-es",
        ),
        (
            "searcher: {seed: 1}",
            r"a searcher is a name, or a mapping with the field 'kind'\n.*cma-es, .*cycle-qd, kinship, m2n2, map",
        ),
        ("searcher: [nsga2]", r"a searcher is a name, or a mapping"),
        (
            "searcher:\n  kind: nsga2\n  populaton: 9",
            r"experiment.yaml:3: searcher.populaton: unknown field 'populaton'\n.*'population'",
        ),
        ("searcher: {kind: nsga2, population: 1}", r"searcher.population: .* greater than or equal to 2"),
        ("searcher: {kind: nsga2, crossover: spx, population: 2}", r"'spx' mixes three parents: population"),
        ("searcher: {kind: nsga2, crossover: sbxx}", r"'sbxx' is not a valid value\n.*'sbx'"),
        ("searcher: {kind: random, seed: -1}", r"searcher.seed: .* greater than or equal to 0"),
        ("searcher: {kind: cma-es, restarts: ipopp}", r"'ipopp' is not a valid value\n.*'ipop'"),
        ("searcher: {kind: cma-es, sigma0: 0}", r"searcher.sigma0: .* greater than 0"),
        (
            "searcher: {kind: optuna, sampler: TPSampler}",
            r"unknown Optuna sampler 'TPSampler'; .*'TPESampler'",
        ),
        (
            "searcher: {kind: optuna, sampler: CmaEsSampler}",
            r"searcher.sampler: the sampler CmaEsSampler of Optuna's cannot be used here: .*`kind: cma-es`",
        ),
        (
            "searcher:\n  kind: optuna\n  options: {multivariat: true}",
            r"experiment.yaml:3: searcher.options: .*no such option: 'multivariat': .*'multivariate'",
        ),
        ("searcher: {kind: optuna, options: {seed: 1}}", r"the seed is written beside `kind`"),
    ],
)
def test_bad_configs_are_refused_with_line_and_nearest_name(text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_a_config_without_a_file_is_refused_in_words():
    with pytest.raises(ConfigError, match=r"searcher: budget: unknown field 'budget'"):
        read_searcher({"kind": "qmc", "budget": 3})


@pytest.mark.parametrize(
    ("genes", "objectives", "points", "message"),
    [
        ((GENES[0], GENES[0]), SCORE, (), "the gene 'weight' occurs twice"),
        ((FloatGene("x", 1.0, 0.0, 0.5),), SCORE, (), r"the bounds \[1.0, 0.0\] of the gene 'x'"),
        ((FloatGene("x", 0.0, float("inf"), 0.5),), SCORE, (), "are not an interval"),
        (
            (FloatGene("x", 0.0, 1.0, 2.0),),
            SCORE,
            (),
            r"the initial value 2.0 of the gene 'x' is not in \[0.0",
        ),
        ((ChoiceGene("x", ("a", "b"), "c"),), SCORE, (), "the initial value 'c' of the gene 'x' is not in"),
        ((ChoiceGene("x", (), ""),), SCORE, (), "the gene 'x' has no choices"),
        ((IntGene("x", 2, 2, 2), ChoiceGene("y", ("a",), "a")), SCORE, (), "there is nothing to search"),
        ((), SCORE, (), "there is nothing to search"),
        (GENES, (), (), "at least one objective"),
        (GENES, SCORE * 2, (), "two objectives have the name 'score'"),
        (GENES, (ObjectiveSpec("score", "maximize", -1.0),), (), "weights must be finite and not negative"),
        (GENES, (ObjectiveSpec("score", "maximize", 0.0),), (), "all objectives have weight 0"),
        (
            GENES,
            SCORE,
            ({"weight": 2.0, "method": "ties"},),
            r"starting point 0: 'weight' = 2.0 is not in \[0",
        ),
        (
            GENES,
            SCORE,
            ({"weight": 0.5, "method": "tie"},),
            r"'method' = 'tie' is not in \('linear', 'ties'\)",
        ),
        (GENES, SCORE, ({"weigt": 0.5, "method": "ties"},), r"unknown gene 'weigt'\n.*'weight'"),
        (GENES, SCORE, ({"weight": 0.5},), "starting point 0: no value for the gene 'method'"),
    ],
)
def test_a_search_that_cannot_be_is_refused(genes, objectives, points, message):
    with pytest.raises(ConfigError, match=message):
        build_searcher(read_searcher("cma-es"), genes, objectives, 10, points)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        build_searcher(read_searcher("random"), (), (), 10, ({"x": 1.0},))
    assert len(caught.value.problems) == 3


def test_weight_zero_is_fine_where_weights_do_not_count():
    build_searcher(read_searcher("nsga2"), GENES, (ObjectiveSpec("score", "maximize", 0.0),), 10)


def test_the_table_says_what_each_searcher_is():
    for name, entry in SEARCHERS.items():
        assert entry.config().kind == name
        assert issubclass(entry.config, SearcherConfig)
        assert entry.summary
        assert entry.config.__doc__
        assert all(info.description for info in entry.config.model_fields.values())
