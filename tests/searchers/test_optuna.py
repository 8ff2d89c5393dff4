"""NSGA-II and the other Optuna samplers against Optuna's own loop; what Optuna does not do by itself (T9)."""

import moocore
import numpy as np
import optuna
import pytest

from evomerge.errors import ConfigError
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, IntGene
from evomerge.searchers import ObjectiveSpec, build_searcher, read_searcher
from evomerge.searchers.optuna_samplers import sampler_options, samplers
from evomerge.searchers.optuna_study import quiet_optuna
from evomerge.testing.searchers import MIXED, drive, score

GENES = (
    FloatGene("weight", 0.0, 1.0, 0.5),
    IntGene("layers", 0, 9, 4),
    ChoiceGene("method", ("linear", "ties"), "ties"),
)
TWO = (ObjectiveSpec("near", "maximize"), ObjectiveSpec("cost", "minimize"))


def search(config, genes, evaluate, trials, objectives=TWO, points=(), in_flight=1):
    searcher = build_searcher(read_searcher(config), genes, objectives, trials, points)
    return drive(searcher, evaluate, trials, in_flight)


def optuna_genomes(make_sampler, trials):
    """The genomes of Optuna's own ``study.optimize`` over GENES."""

    def objective(trial):
        trial.suggest_float("weight", 0.0, 1.0)
        trial.suggest_int("layers", 0, 9)
        trial.suggest_categorical("method", ("linear", "ties"))
        return tuple(score(trial.params).values())

    with quiet_optuna():
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=make_sampler())
        study.optimize(objective, n_trials=trials)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize(
    ("config", "make_sampler"),
    [
        (
            {"kind": "nsga2", "population": 8, "seed": 5},
            lambda: optuna.samplers.NSGAIISampler(population_size=8, seed=5),
        ),
        (
            {"kind": "nsga2", "population": 8, "crossover": "undx", "mutation_probability": 0.3},
            lambda: optuna.samplers.NSGAIISampler(
                population_size=8, crossover=optuna.samplers.nsgaii.UNDXCrossover(), mutation_prob=0.3, seed=0
            ),
        ),
        (
            {"kind": "optuna", "options": {"multivariate": True}, "seed": 2},
            lambda: optuna.samplers.TPESampler(multivariate=True, seed=2),
        ),
        (
            {"kind": "optuna", "sampler": "NSGAIIISampler", "options": {"population_size": 9}},
            lambda: optuna.samplers.NSGAIIISampler(population_size=9, seed=0),
        ),
    ],
    ids=["nsga2", "nsga2-undx", "tpe", "nsga3"],
)
def test_the_genomes_are_those_of_optunas_own_loop(config, make_sampler):
    with quiet_optuna():
        expected = optuna_genomes(make_sampler, 60)
    assert [trial.genome for trial in search(config, GENES, score, 60)] == expected


def zdt1(genome):
    """Zitzler, Deb and Thiele 2000, problem 1."""
    first, *rest = genome.values()
    g = 1 + 9 * float(np.mean(rest))
    return {"f1": first, "f2": g * (1 - np.sqrt(first / g))}


def test_nsga2_finds_a_better_front_than_random_search():
    genes = tuple(FloatGene(f"x{i}", 0.0, 1.0, 0.5) for i in range(10))
    objectives = (ObjectiveSpec("f1", "minimize"), ObjectiveSpec("f2", "minimize"))

    def hypervolume(kind, seed):
        trials = search({"kind": kind, "seed": seed}, genes, zdt1, 300, objectives, in_flight=4)
        return moocore.hypervolume(np.array([list(t.objectives.values()) for t in trials]), ref=[1.1, 6.0])

    assert min(hypervolume("nsga2", seed) for seed in range(3)) > max(hypervolume("random", seed) for seed in range(3))


@pytest.mark.parametrize("config", ["nsga2", "optuna"])
def test_the_first_trials_are_the_starting_points(config):
    points = [
        {"weight": 0.0, "layers": 9, "method": "linear"},
        {"weight": 0.25, "layers": 0, "method": "ties"},
    ]
    trials = search(config, GENES, score, 5, points=points, in_flight=3)
    assert [trial.genome for trial in trials[:2]] == points


def test_starting_points_are_parents_of_the_second_generation():
    """Optuna leaves enqueued trials out of its populations unless they are asked for their parameters."""
    genes = tuple(FloatGene(f"x{i}", 0.0, 1.0, 0.5) for i in range(20))
    start = {gene.name: 0.9 for gene in genes}
    objectives = (ObjectiveSpec("sum", "maximize"),)
    config = {"kind": "nsga2", "population": 6}
    trials = search(config, genes, lambda genome: {"sum": sum(genome.values())}, 30, objectives, [start])
    sums = [trial.objectives["sum"] for trial in trials]
    assert sums[0] == pytest.approx(18)
    assert max(sums[1:6]) < 13 < 15 < max(sums[6:18])


def test_a_resumed_search_repeats_no_proposal():
    """T9: a seeded Optuna sampler that is made anew on resume proposes its first genomes again."""
    config = {"kind": "nsga2", "population": 10, "seed": 1}
    whole = search(config, GENES, score, 60)
    resumed = build_searcher(read_searcher(config), GENES, TWO, 60)
    drive(resumed, score, 35)  # the replay of the journal
    following = [trial.genome["weight"] for trial in drive(resumed, score, 25)]
    assert following == [trial.genome["weight"] for trial in whole[35:]]
    first = [trial.genome["weight"] for trial in whole[:10]]
    assert following[:10] != first


def test_a_search_is_not_nsga2_by_default():
    """T9: Optuna falls back to another sampler when a study is loaded; ours is the one named."""
    tpe = search({"kind": "optuna", "sampler": "TPESampler"}, MIXED, score, 40)
    nsga2 = search({"kind": "optuna", "sampler": "NSGAIISampler"}, MIXED, score, 40)
    assert [trial.genome for trial in tpe] != [trial.genome for trial in nsga2]


def test_every_sampler_that_is_offered_runs():
    for name in samplers():
        trials = search({"kind": "optuna", "sampler": name}, GENES, score, 4, in_flight=2)
        assert len(trials) == 4


def test_options_are_those_that_can_be_written_as_data():
    assert "multivariate" in sampler_options("TPESampler")
    assert not {"seed", "gamma", "weights", "constraints_func"} & set(sampler_options("TPESampler"))
    assert "independent_sampler" not in sampler_options("GPSampler")


def test_an_unfit_option_value_is_refused():
    config = read_searcher({"kind": "optuna", "sampler": "QMCSampler", "options": {"qmc_type": "lattice"}})
    with pytest.raises(ConfigError, match=r"searcher.options: Optuna's QMCSampler does not take these options"):
        build_searcher(config, GENES, TWO, 10)


def test_optunas_log_level_is_left_as_it_was():
    before = optuna.logging.get_verbosity()
    search("nsga2", GENES, score, 3)
    assert optuna.logging.get_verbosity() == before
