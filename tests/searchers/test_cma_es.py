"""CMA-ES against pycma's own loop, restarts, and what pycma does not do by itself (T7, T8)."""

import cma
import numpy as np
import pytest

from evomerge.search_spaces.genes import ChoiceGene, FloatGene, IntGene
from evomerge.searchers import ObjectiveSpec, build_searcher, read_searcher
from evomerge.searchers.cma_restarts import Launch, bipop, ipop, single
from evomerge.testing.searchers import drive

COST = (ObjectiveSpec("cost", "minimize"),)
FUNCTIONS = {"sphere": cma.ff.sphere, "ellipsoid": cma.ff.elli, "rosenbrock": cma.ff.rosen}


def search(options, genes, evaluate, trials, objectives=COST, points=(), in_flight=1):
    searcher = build_searcher(read_searcher({"kind": "cma-es", **options}), genes, objectives, trials, points)
    return drive(searcher, evaluate, trials, in_flight)


def cube(dimensions, low=-3.0, high=5.0, initial=2.0):
    return tuple(FloatGene(f"x{i}", low, high, initial) for i in range(dimensions))


def vector(genome):
    return np.array(list(genome.values()))


def pycma_costs(function, dimensions, seed, trials, evaluated=None):
    """The costs that pycma's own loop finds on the same cube, with the same draws."""
    costs = []

    def cost(point):
        x = -3.0 + 8.0 * np.asarray(point)
        costs.append(float(function(x)))
        if evaluated is not None:
            evaluated.append(x)
        return costs[-1]

    generator = np.random.default_rng(seed)
    options = {
        "randn": lambda *shape: generator.standard_normal(shape),
        "bounds": [0, 1],
        "popsize": 4 + int(3 * np.log(dimensions)),
        "tolflatfitness": 20,
        "maxfevals": trials,
        "verbose": -9,
        "verb_log": 0,
        "signals_filename": "",
    }
    cma.fmin2(cost, [0.625] * dimensions, 0.25, options)
    return costs


def test_the_trials_are_those_of_pycma():
    evaluated = []
    costs = pycma_costs(cma.ff.rosen, 4, 3, 400, evaluated)
    trials = search(
        {"seed": 3, "restarts": "none"}, cube(4), lambda genome: {"cost": cma.ff.rosen(vector(genome))}, 400
    )
    ours = np.array([vector(trial.genome) for trial in trials])
    assert len(costs) >= 400
    np.testing.assert_allclose(ours, np.array(evaluated)[:400], atol=1e-9)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_the_optimum_is_as_good_as_that_of_pycma(name):
    function = FUNCTIONS[name]
    ours, theirs = [], []
    for seed in range(7):
        trials = search(
            {"seed": seed},
            cube(5),
            lambda genome: {"cost": float(function(vector(genome)))},
            900,
            in_flight=3,
        )
        ours.append(np.log10(min(trial.objectives["cost"] for trial in trials)))
        theirs.append(np.log10(min(pycma_costs(function, 5, seed + 100, 900)[:900])))
    error = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 7)
    assert np.mean(ours) - np.mean(theirs) <= 2.5 * error + 0.1


@pytest.mark.parametrize("genes", [cube(4), cube(320), (*cube(2), IntGene("n", 0, 9, 4))])
def test_two_generations_draw_different_numbers_after_lm_eval_reseeds_numpy(genes):
    """T7: lm-eval calls ``np.random.seed(1234)`` in every evaluation."""

    def steps(reseed):
        def evaluate(genome):
            if reseed:
                np.random.seed(1234)
            return {"cost": float(np.sum(vector(genome) ** 2))}

        return search({"population": 6}, genes, evaluate, 60)

    before = repr(np.random.get_state())
    trials = steps(reseed=False)
    assert repr(np.random.get_state()) == before
    saved = np.random.get_state()
    assert steps(reseed=True) == trials
    np.random.set_state(saved)
    generations = [np.array([vector(trial.genome)[0] for trial in trials[k : k + 6]]) for k in (0, 6)]
    assert not np.allclose(*(np.diff(g) / np.std(g) for g in generations), atol=1e-3)


def test_seed_zero_is_a_seed_and_not_the_time():
    """T8: to pycma itself, seed 0 means the time."""

    def run(seed):
        return search({"seed": seed}, cube(3), lambda genome: {"cost": sum(vector(genome))}, 30)

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_failed_trials_count_as_the_worst_cost_so_far():
    """T8: pycma raises on None and accepts NaN."""

    def evaluate(genome):
        cost = float(np.sum((vector(genome) - 1.0) ** 2))
        return None if genome["x0"] > 1.5 else {"cost": cost}

    trials = search({}, cube(3), evaluate, 400)
    failed = [trial.objectives is None for trial in trials]
    assert np.mean(failed[:50]) > 0.3 > np.mean(failed[-50:])
    assert min(trial.objectives["cost"] for trial in trials if trial.objectives) < 1e-6


def test_a_generation_is_told_whole_before_the_next_is_asked():
    searcher = build_searcher(read_searcher({"kind": "cma-es", "population": 5}), cube(3), COST, 100)
    asked = [searcher.ask() for _ in range(5)]
    assert searcher.ask() is None
    for genome in asked[:4]:
        searcher.tell(genome, {"cost": 1.0})
        assert searcher.ask() is None
    searcher.tell(asked[4], {"cost": 0.0})
    assert searcher.ask() is not None


def test_objectives_are_added_by_weight_and_direction():
    objectives = (
        ObjectiveSpec("gain", "maximize", 2.0),
        ObjectiveSpec("loss", "minimize", 1.0),
        ObjectiveSpec("ignored", "maximize", 0.0),
    )

    def evaluate(genome):
        x = vector(genome)
        return {"gain": -np.sum((x - 1) ** 2), "loss": np.sum((x + 2) ** 2), "ignored": 1e6 * x[0]}

    trials = search({}, cube(3), evaluate, 600, objectives)
    best = min(trials, key=lambda t: t.objectives["loss"] - 2 * t.objectives["gain"])
    np.testing.assert_allclose(vector(best.genome), 0.0, atol=1e-3)  # argmin of 2 (x - 1)² + (x + 2)²


def test_the_search_starts_at_the_starting_point_or_the_initial_values():
    def mean_of_first_generation(points):
        options = {"population": 200, "sigma0": 0.01}
        genes = (FloatGene("x", -3.0, 5.0, 2.0), FloatGene("y", 0.0, 10.0, 7.0))
        trials = search(options, genes, lambda genome: {"cost": 0.0}, 200, points=points)
        return np.mean([vector(trial.genome) for trial in trials], axis=0)

    np.testing.assert_allclose(mean_of_first_generation(()), [2.0, 7.0], atol=0.03)
    np.testing.assert_allclose(mean_of_first_generation([{"x": -1.0, "y": 3.0}]), [-1.0, 3.0], atol=0.03)


def test_one_step_size_means_the_same_share_of_every_range():
    genes = (FloatGene("a", 0, 1, 0.5), FloatGene("b", -500, 500, 0), IntGene("c", 0, 100, 50))
    trials = search({"population": 400, "sigma0": 0.1}, genes, lambda genome: {"cost": 0.0}, 400)
    spread = np.std([vector(trial.genome) for trial in trials], axis=0) / [1, 1000, 101]
    np.testing.assert_allclose(spread, 0.1, rtol=0.1)


def test_integers_and_choices_are_found():
    genes = (
        *cube(2),
        IntGene("layers", -8, 9, 0),
        IntGene("switch", 0, 1, 0),
        ChoiceGene("method", ("linear", "slerp", "ties", "dare"), "linear"),
    )

    def evaluate(genome):
        cost = (genome["x0"] - 1) ** 2 + (genome["x1"] + 1) ** 2 + (genome["layers"] - 6) ** 2 / 10
        return {"cost": cost + (genome["switch"] == 0) + (genome["method"] != "ties")}

    solved = 0
    for seed in range(5):
        trials = search({"seed": seed}, genes, evaluate, 2000)
        best = min(trials, key=lambda trial: trial.objectives["cost"]).genome
        solved += (best["layers"], best["switch"], best["method"]) == (6, 1, "ties")
    assert solved >= 4


@pytest.mark.parametrize("gene", [IntGene("n", -2, 7, 0), ChoiceGene("c", ("a", "b", "c"), "a")])
def test_a_single_gene_with_cells_is_searched(gene):
    last = gene.choices[-1] if isinstance(gene, ChoiceGene) else gene.high

    def cost(genome):
        value = genome[gene.name]
        return {"cost": float(value != last if isinstance(value, str) else last - value)}

    trials = search({}, (gene,), cost, 100)
    assert any(trial.genome[gene.name] == last for trial in trials)


def rastrigin(genome):
    return {"cost": float(cma.ff.rastrigin(vector(genome) - 0.5))}


def test_restarts_escape_from_local_optima():
    """Auger and Hansen 2005: on a multimodal function the growing population finds what one launch misses."""

    def best(restarts):
        options = ({"seed": seed, "restarts": restarts, "sigma0": 0.1} for seed in range(3))
        searches = (search(option, cube(2, initial=4.0), rastrigin, 3000) for option in options)
        return [min(trial.objectives["cost"] for trial in trials) for trials in searches]

    alone = min(best("none"))
    assert max(best("ipop")) < 0.3 * alone
    assert max(best("bipop")) < 0.3 * alone


def test_without_restarts_the_search_goes_on_around_the_optimum():
    trials = search({"restarts": "none"}, cube(2), lambda genome: {"cost": float(np.sum(vector(genome) ** 2))}, 3000)
    assert max(trial.objectives["cost"] for trial in trials[-20:]) < 1e-9


def test_coarse_scores_do_not_restart_the_search_early():
    """Accuracies on few items tie often; pycma's default gives up after two flat generations."""

    def evaluate(genome):
        return {"cost": np.round(np.sum((vector(genome) - 1.0) ** 2) / 20) + (genome["x0"] < -2.9)}

    trials = search({"population": 8}, cube(4), evaluate, 150)
    spread = [np.std([vector(t.genome) for t in trials[k : k + 8]], axis=0).max() for k in range(0, 144, 8)]
    centres = [np.mean([vector(t.genome) for t in trials[k : k + 8]], axis=0) for k in range(0, 144, 8)]
    assert max(np.abs(np.diff(centres, axis=0)).max(axis=1)) < 3 * max(spread)


def test_ipop_doubles_the_population_each_time():
    schedule = ipop(8, np.random.default_rng(0))
    launches = [next(schedule)] + [schedule.send(100) for _ in range(3)]
    assert [launch.population for launch in launches] == [8, 16, 32, 64]


def test_single_ends_after_one_launch():
    schedule = single(8, np.random.default_rng(0))
    assert next(schedule) == Launch(8)
    with pytest.raises(StopIteration):
        schedule.send(100)


def test_bipop_spends_as_much_on_small_populations_as_on_large_ones():
    schedule = bipop(10, np.random.default_rng(0))
    spent = {"small": 0, "large": 0}
    launch, largest = next(schedule), 10
    for _ in range(60):
        is_large = launch.population > largest
        if is_large:
            assert launch.population == 2 * largest
            largest = launch.population
            evaluations = 50 * launch.population
        else:
            assert 10 <= launch.population <= max(10, largest // 2)
            assert 0.01 <= launch.sigma_factor <= 1.0
            evaluations = int(min(50 * launch.population, launch.evaluations))
        spent["large" if is_large else "small"] += evaluations
        launch = schedule.send(evaluations)
        if largest > 10**6:
            break
    assert spent["small"] <= spent["large"] * 1.5 + 1000
    assert largest > 40
