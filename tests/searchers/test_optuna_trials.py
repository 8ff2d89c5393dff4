"""A sampler on our storage proposes what it proposes on Optuna's, though trials are forgotten there."""

from collections import deque

import optuna
import pytest

from evomerge.search_spaces.genes import FloatGene
from evomerge.searchers import ObjectiveSpec
from evomerge.searchers.base import Setting
from evomerge.searchers.nsga2 import Nsga2Sampler
from evomerge.searchers.optuna_study import OptunaSearcher, quiet_optuna
from evomerge.testing.searchers import MIXED, score_some

OBJECTIVES = (ObjectiveSpec("near", "maximize"), ObjectiveSpec("cost", "minimize"))
POINTS = ({gene.name: gene.initial for gene in MIXED},)


def optunas_own(sampler, trials: int, in_flight: int) -> list[dict]:
    """Ask and tell Optuna's storage in memory, the starting point enqueued."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.enqueue_trial(dict(POINTS[0]))
    open_, told = deque(), []
    for _ in range(trials + in_flight):
        if len(open_) == in_flight or len(told) + len(open_) == trials:
            trial = open_.popleft()
            values = score_some(trial.params)
            if values is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, list(values.values()))
            told.append(trial.params)
        if len(told) + len(open_) < trials:
            trial = study.ask()
            _ = trial.relative_params
            for gene in MIXED:
                if isinstance(gene, FloatGene):
                    trial.suggest_float(gene.name, gene.low, gene.high)
                elif hasattr(gene, "choices"):
                    trial.suggest_categorical(gene.name, gene.choices)
                else:
                    trial.suggest_int(gene.name, gene.low, gene.high)
            open_.append(trial)
    return told


def ours(sampler, trials: int, in_flight: int) -> tuple[list[dict], OptunaSearcher, int]:
    searcher = OptunaSearcher(sampler, Setting(MIXED, OBJECTIVES, trials, POINTS))
    open_, told, most = deque(), [], 0
    while len(told) < trials:
        if len(open_) == in_flight or len(told) + len(open_) == trials:
            genome = open_.popleft()
            searcher.tell(genome, score_some(genome))
            told.append(genome)
        if len(told) + len(open_) < trials:
            open_.append(searcher.ask())
        most = max(most, len(searcher._trials.get_all_trials(0)))
    return told, searcher, most


SAMPLERS = {
    "nsga2": lambda: optuna.samplers.NSGAIISampler(population_size=6, seed=3),
    "nsga3": lambda: optuna.samplers.NSGAIIISampler(population_size=6, seed=3),
    "tpe": lambda: optuna.samplers.TPESampler(seed=3, constant_liar=True),
    "random": lambda: optuna.samplers.RandomSampler(seed=3),
}


@pytest.mark.parametrize("in_flight", [1, 7, 40])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_genomes_are_those_on_optunas_storage(name: str, in_flight: int) -> None:
    trials = 60 if name == "tpe" else 150
    with quiet_optuna():
        mine = Nsga2Sampler(population_size=6, seed=3) if name == "nsga2" else SAMPLERS[name]()
        expected = optunas_own(SAMPLERS[name](), trials, in_flight)
        found, _, _ = ours(mine, trials, in_flight)
    assert found == expected


@pytest.mark.parametrize("in_flight", [1, 40])
def test_trials_of_generations_past_are_forgotten(in_flight: int) -> None:
    _, _, most = ours(Nsga2Sampler(population_size=6, seed=3), 400, in_flight)
    assert most <= 2 * in_flight + 5 * 6


def test_other_samplers_forget_nothing() -> None:
    _, searcher, _ = ours(optuna.samplers.RandomSampler(seed=3), 30, 4)
    assert len(searcher._trials.get_all_trials(0)) == 30


def test_a_trial_costs_no_distributions_of_its_own() -> None:
    _, searcher, _ = ours(optuna.samplers.TPESampler(seed=3), 15, 2)
    first, *others = searcher._trials.get_all_trials(0)
    assert all(trial.distributions is first.distributions for trial in others)
