"""Every searcher that ships passes the public conformance suite."""

import pytest

from evomerge.errors import RunError
from evomerge.searchers import SEARCHERS, SearcherConfig, read_searcher
from evomerge.testing.searchers import SearcherTestCase

CONFIGS = {
    "random": {"kind": "random"},
    "qmc": {"kind": "qmc"},
    "cma-es": {"kind": "cma-es"},
    "cma-es-bipop-penalty": {"kind": "cma-es", "restarts": "bipop", "bounds": "penalty", "population": 5},
    "cma-es-diagonal-once": {"kind": "cma-es", "restarts": "none", "diagonal": True, "sigma0": 0.5},
    "nsga2": {"kind": "nsga2", "population": 10},
    "nsga2-sbx-polynomial": {"kind": "nsga2", "population": 6, "crossover": "sbx", "mutation": "polynomial"},
    "nsga2-undx": {"kind": "nsga2", "population": 6, "crossover": "undx"},
    "tpe": {"kind": "optuna", "sampler": "TPESampler"},
    "nsga3": {"kind": "optuna", "sampler": "NSGAIIISampler", "options": {"population_size": 8}},
    "optuna-qmc": {"kind": "optuna", "sampler": "QMCSampler", "options": {"scramble": True}},
    "optuna-random": {"kind": "optuna", "sampler": "RandomSampler"},
}


class TestShippedSearchers(SearcherTestCase):
    @pytest.fixture(params=sorted(CONFIGS))
    def config(self, request):
        return read_searcher(CONFIGS[request.param])


class TestGaussianProcess(SearcherTestCase):
    trials = 14  # ten random trials, then four from the Gaussian process, which take a second each

    @pytest.fixture()
    def config(self):
        return read_searcher({"kind": "optuna", "sampler": "GPSampler"})

    @pytest.fixture()
    def genes(self):
        from evomerge.testing.searchers import SINGLE

        return SINGLE


def test_every_kind_is_under_test():
    assert {config["kind"] for config in CONFIGS.values()} == set(SEARCHERS)
