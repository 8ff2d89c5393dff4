"""Every searcher that ships passes the public conformance suite."""

import pytest

from evomerge.searchers import SEARCHERS, ObjectiveSpec, read_searcher
from evomerge.searchers.grids import AxisConfig
from evomerge.testing.crossing import CrossingConfig
from evomerge.testing.searchers import SPACES, LineageSearcherTestCase, SearcherTestCase, drive, score

CONFIGS = {
    "random": {"kind": "random"},
    "qmc": {"kind": "qmc"},
    "cma-es": {"kind": "cma-es"},
    "cma-es-bipop": {"kind": "cma-es", "restarts": "bipop", "population": 5},
    "cma-es-diagonal": {"kind": "cma-es", "restarts": "none", "diagonal": True, "sigma0": 0.5},
    "evo-merging": {"kind": "evo-merging", "population": 6, "denoising": 12},
    "nsga2": {"kind": "nsga2", "population": 10},
    "nsga2-sbx-polynomial": {"kind": "nsga2", "population": 6, "crossover": "sbx", "mutation": "polynomial"},
    "tpe": {"kind": "optuna", "sampler": "TPESampler"},
    "nsga3": {"kind": "optuna", "sampler": "NSGAIIISampler", "options": {"population_size": 8}},
}


class TestShippedSearchers(SearcherTestCase):
    @pytest.fixture(params=sorted(CONFIGS))
    def config(self, request):
        return read_searcher(CONFIGS[request.param])


SURROGATES = {
    "map": {"kind": "map", "points": 8, "batch": 3, "link": "identity"},
    "map-bayesian": {
        "kind": "map",
        "variant": "bayesian",
        "design": "sobol",
        "points": 6,
        "optimizer": "nsga2",
        "link": "identity",
    },
    "map-bins": {
        "kind": "map",
        "variant": "bayesian",
        "acquisition": "bins",
        "design": "mixed",
        "points": 6,
        "link": "identity",
    },
}


class TestSurrogates(SearcherTestCase):
    trials = 16  # the design, and two batches

    @pytest.fixture(params=sorted(SURROGATES))
    def config(self, request):
        return read_searcher(SURROGATES[request.param])


@pytest.mark.slow
class TestGaussianProcess(SearcherTestCase):
    trials = 12  # ten random trials, then two from the Gaussian process

    @pytest.fixture
    def config(self):
        return read_searcher({"kind": "optuna", "sampler": "GPSampler"})

    @pytest.fixture
    def genes(self):
        return SPACES["floats"]


class TestReferenceOfLineage(LineageSearcherTestCase):
    @pytest.fixture(params=[{}, {"recent": 1, "seed": 5}], ids=str)
    def config(self, request):
        return CrossingConfig(**request.param)


NICHES = {"near": {"low": -40.0, "high": 0.0}, "cost": {"low": 0.0, "high": 40.0}}
WIDE = {"near": {"low": -5e18, "high": 0.0}, "cost": {"low": 0.0, "high": 5e18}}  # seeds of mutations are scored too
POPULATIONS = {
    "kinship": {"kind": "kinship"},
    "kinship-greedy": {"kind": "kinship", "top": 2, "explore": 0},
    "kinship-previous": {"kind": "kinship", "explore": 2, "partners": "previous", "metric": "ed"},
    "m2n2": {"kind": "m2n2", "archive": 5},
    "m2n2-plain": {"kind": "m2n2", "archive": 5, "competition": False, "attraction": False, "split": False},
    "map-elites": {"kind": "map-elites", "bins": 4, "grid": NICHES},
    "map-elites-quality": {"kind": "map-elites", "sampling": "quality", "grid": WIDE},
    "cycle-qd": {"kind": "cycle-qd", "bins": 5, "aggregate": 6, "grid": NICHES},
    "cycle-qd-random": {"kind": "cycle-qd", "sampling": "random", "swap": 3, "aggregate": 0, "grid": NICHES},
}


class TestPopulations(LineageSearcherTestCase):
    @pytest.fixture(params=sorted(POPULATIONS))
    def config(self, request):
        return read_searcher(POPULATIONS[request.param])

    def test_the_direction_is_obeyed(self, config, genes):
        if config.kind == "m2n2":
            pytest.skip("learns from items, whose scores are higher the better whatever the direction")
        up, down = (tuple(ObjectiveSpec(name, d) for name in ("near", "cost")) for d in ("maximize", "minimize"))
        wide = {name: AxisConfig(low=-40.0, high=40.0) for name in ("near", "cost")}

        def turned(genome):
            return {name: -value for name, value in score(genome).items()}

        config = config.model_copy(update={"grid": wide} if "grid" in type(config).model_fields else {})
        first = drive(self.build(config, genes, up), turned, self.trials)
        second = drive(self.build(config, genes, down), score, self.trials)
        assert [trial.genome for trial in first] == [trial.genome for trial in second]


def test_every_kind_is_under_test():
    tested = {config["kind"] for kinds in (CONFIGS, SURROGATES, POPULATIONS) for config in kinds.values()}
    assert tested == {kind for kind in SEARCHERS if SEARCHERS.origin(kind) != CrossingConfig.__module__}
