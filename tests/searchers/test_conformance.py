"""Every searcher that ships passes the public conformance suite."""

import pytest

from evomerge.searchers import SEARCHERS, read_searcher
from evomerge.testing.searchers import SPACES, SearcherTestCase

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


def test_every_kind_is_under_test():
    assert {config["kind"] for config in (*CONFIGS.values(), *SURROGATES.values())} == set(SEARCHERS)
