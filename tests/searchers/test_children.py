"""NSGA-II's children: the very ones that Optuna breeds."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import NSGAIISampler

from evomerge.searchers.children import Children
from evomerge.searchers.nsga2 import CROSSOVERS
from evomerge.searchers.optuna_study import quiet_optuna

SPACES: dict[str, dict[str, Any]] = {
    "floats": {f"f{n}": FloatDistribution(-1.0, 2.0) for n in range(7)},
    "integers": {f"i{n}": IntDistribution(-2, 5) for n in range(5)},
    "choices": {f"c{n}": CategoricalDistribution(("x", "y", "z")) for n in range(4)},
    "all": {
        "f": FloatDistribution(0.0, 1.0),
        "c": CategoricalDistribution(("x", "y")),
        "i": IntDistribution(0, 9),
        "d": CategoricalDistribution(("u", "v", "w")),
        "g": FloatDistribution(0.1, 0.2),
    },
}


def population(space: dict[str, Any], seed: int, objectives: int) -> tuple[optuna.Study, list[Any]]:
    rng = np.random.default_rng(seed)
    study = optuna.create_study(directions=["maximize", "minimize", "maximize"][:objectives])
    for _ in range(12):
        params: dict[str, Any] = {}
        for name, each in space.items():
            if isinstance(each, CategoricalDistribution):
                params[name] = each.choices[rng.integers(len(each.choices))]
            elif isinstance(each, IntDistribution):
                params[name] = int(rng.integers(each.low, each.high + 1))
            else:
                params[name] = float(rng.choice([each.low, each.high, rng.uniform(each.low, each.high)]))
        values = rng.integers(0, 4, objectives).astype(float).tolist()  # with ties
        study.add_trial(optuna.create_trial(params=params, distributions=space, values=values))
    return study, study.get_trials()


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("crossover", sorted(CROSSOVERS))
@pytest.mark.parametrize("objectives", [1, 3])
def test_children_are_optunas_own(space: str, crossover: str, objectives: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings(), quiet_optuna():
        warnings.simplefilter("ignore")
        study, trials = population(SPACES[space], len(space), objectives)
        for mutation in (None, 0.3):
            mixer = CROSSOVERS[crossover]()
            theirs = NSGAIISampler(
                crossover=mixer, crossover_prob=0.8, swapping_prob=0.4, mutation_prob=mutation, seed=3
            )
            ours = Children(CROSSOVERS[crossover](), 0.8, 0.4, mutation, 3)
            for _ in range(60):
                expected = theirs._child_generation_strategy(study, SPACES[space], trials)
                assert ours(study, SPACES[space], trials) == expected
