"""MAP: what it evaluates first and then, how near the front it comes, and what it says it knows."""

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.fronts import hypervolume, igd_plus
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, IntGene
from evomerge.searchers import ObjectiveSpec, build_searcher, read_searcher
from evomerge.searchers.surrogates.explanation import Explains
from evomerge.searchers.surrogates.links import LINK_NAMES, LINKS
from evomerge.testing.searchers import MIXED, drive, score

GENES = tuple(FloatGene(f"x{i}", -1.0, 3.0, 0.0) for i in range(3))
CENTRES = np.array([[0.2, 0.3, 0.5], [0.8, 0.6, 0.1]])
BOTH = (ObjectiveSpec("math", "maximize"), ObjectiveSpec("code", "maximize"))
DESIGN, BATCH = 16, 10  # the design is 4 (genes + 1)


def build(options=None, genes=GENES, objectives=BOTH, points=()):
    return build_searcher(read_searcher({"kind": "map", **(options or {})}), genes, objectives, 100, points)


def paraboloids(link):
    """Two objectives whose front is the segment between the centres, as a function of points (rows, 3) of the box."""
    return lambda points: LINKS[link].value(1 - 3 * np.square(points[:, None] - CENTRES).sum(2))


def evaluating(values):
    def evaluate(genome):
        point = (np.array([list(genome.values())]) + 1) / 4
        return dict(zip(("math", "code"), values(point)[0].tolist(), strict=True))

    return evaluate


def segment(count):
    share = np.linspace(0, 1, count)[:, None]
    return share * CENTRES[0] + (1 - share) * CENTRES[1]


def told(trials):
    return np.array([list(trial.objectives.values()) for trial in trials])


@pytest.mark.parametrize("variant", ["plain", "bayesian"])
@pytest.mark.parametrize("link", LINK_NAMES)
def test_one_batch_after_the_design_is_on_the_front(link, variant):
    values = paraboloids(link)
    exact = values(segment(1000))
    searcher = build({"link": link, "variant": variant, "batch": BATCH})
    trials = drive(searcher, evaluating(values), DESIGN + BATCH, in_flight=8)
    evenly = igd_plus(values(segment(BATCH)), exact)  # no ten points can do much better
    assert igd_plus(told(trials), exact) <= 1.2 * evenly < 0.04
    searcher.ask()  # the explanation is of the same trials however many are asked
    explanation = searcher.explanation()
    assert igd_plus([list(point.objectives.values()) for point in explanation.front], exact) < 0.01
    assert not any(facts.is_poor for facts in explanation.surrogates.values())
    assert {facts.link for facts in explanation.surrogates.values()} == {link}
    assert sorted(explanation.foretold) == list(range(DESIGN, DESIGN + BATCH))
    for number, prediction in explanation.foretold.items():
        assert prediction.genome == trials[number].genome
        assert prediction.objectives == pytest.approx(trials[number].objectives, abs=1e-6)
        assert max(prediction.standard_errors.values()) < 1e-4
    assert sorted(explanation.trials) == list(range(DESIGN + BATCH))
    for number, prediction in explanation.trials.items():
        assert prediction.objectives == pytest.approx(trials[number].objectives, abs=1e-6)


def test_losses_are_minimised():
    objectives = (ObjectiveSpec("math", "minimize"), ObjectiveSpec("code", "minimize"))
    values = paraboloids("identity")
    searcher = build({"batch": 20}, objectives=objectives)
    trials = drive(searcher, evaluating(lambda points: 10 - values(points)), DESIGN + 40)
    exact = values(segment(1000)) - 10
    assert igd_plus(-told(trials), exact) < 0.02
    assert {facts.link for facts in searcher.explanation().surrogates.values()} == {"softplus"}


def test_links_are_of_each_objective_and_auto_goes_by_the_values():
    values = paraboloids("identity")
    for options, links in (
        ({}, ["identity", "identity"]),
        ({"link": {"code": "softplus"}}, ["identity", "softplus"]),
        ({"link": "softplus"}, ["softplus", "softplus"]),
    ):
        searcher = build(options)
        drive(searcher, evaluating(lambda points: 9 + values(points)), 10)
        assert [facts.link for facts in searcher.explanation().surrogates.values()] == links


@pytest.mark.parametrize("field", ["link", "prefer"])
def test_objectives_that_are_not_there_are_refused(field):
    given = {"maths": "logit" if field == "link" else 2.0}
    variant = "nested" if field == "prefer" else "plain"
    with pytest.raises(ConfigError, match="no objective is called 'maths'") as caught:
        build({field: given, "variant": variant})
    assert f"searcher.{field}" in str(caught.value)
    assert "code, math" in str(caught.value)


def test_starting_points_come_first_and_are_part_of_the_design():
    points = ({"x2": 0.0, "x1": 1.0, "x0": 2.0}, {"x0": 0.5, "x1": 0.5, "x2": 0.5})
    searcher = build({"points": 6}, points=points)
    asked = [searcher.ask() for _ in range(6)]
    assert asked[:2] == [dict(point) for point in points]
    assert list(asked[0]) == ["x0", "x1", "x2"]
    assert searcher.ask() is None
    assert len({tuple(genome.values()) for genome in asked}) == 6


def test_more_starting_points_than_the_design_has():
    points = tuple({"x0": x, "x1": 0.0, "x2": 0.0} for x in (0.0, 0.5, 1.0))
    searcher = build({"points": 2, "design": "mixed", "batch": 1}, points=points)
    trials = drive(searcher, evaluating(paraboloids("identity")), 4)
    assert [trial.genome["x0"] for trial in trials[:3]] == [0.0, 0.5, 1.0]


def test_the_next_batch_waits_for_all_of_the_last():
    searcher, evaluate = build({"points": 4, "batch": 2}), evaluating(paraboloids("identity"))
    asked = [searcher.ask() for _ in range(4)]
    for genome in asked:
        assert searcher.ask() is None
        searcher.tell(genome, evaluate(genome))
    assert all(searcher.ask() for _ in range(2))
    assert searcher.ask() is None


def test_failed_trials_are_left_out_and_not_asked_again():
    evaluate = evaluating(paraboloids("identity"))
    searcher = build({"points": 20, "batch": 4})
    failed = drive(searcher, lambda genome: None if genome["x0"] > 1.5 else evaluate(genome), 40)
    numbers = [number for number, trial in enumerate(failed) if trial.objectives is not None]
    assert 0 < len(numbers) < 40
    explanation = searcher.explanation()
    assert sorted(explanation.trials) == numbers
    assert all(facts.evaluations == len(numbers) for facts in explanation.surrogates.values())
    for number, prediction in explanation.trials.items():
        assert prediction.genome == pytest.approx(failed[number].genome)
    assert len({tuple(trial.genome.values()) for trial in failed}) == 40


def test_trials_that_all_fail_are_followed_by_others_at_random():
    searcher = build({"points": 3, "batch": 2})
    trials = drive(searcher, lambda genome: None, 9)
    assert len({tuple(trial.genome.values()) for trial in trials}) == 9
    assert searcher.explanation() is None


@pytest.mark.parametrize(
    "options",
    [{}, {"variant": "bayesian", "optimizer": "nsga2"}, {"variant": "bayesian", "acquisition": "bins"}],
    ids=str,
)
def test_integers_choices_and_constants(options):
    searcher = build({**options, "points": 8, "batch": 4}, MIXED)
    trials = drive(searcher, lambda genome: dict(zip(("math", "code"), score(genome).values(), strict=True)), 20)
    for trial in trials:
        assert list(trial.genome) == [gene.name for gene in MIXED]
        assert trial.genome["fixed"] == 0.25
        assert isinstance(trial.genome["layers"], int)
        assert trial.genome["method"] in ("linear", "ties", "slerp")
    front = [tuple(point.genome.values()) for point in searcher.explanation().front]
    assert len(set(front)) == len(front)


def test_few_genomes_are_each_on_the_predicted_front_once():
    genes = (IntGene("layers", 0, 3, 0), ChoiceGene("method", ("linear", "ties"), "ties"))
    searcher = build({"points": 6, "batch": 2}, genes)
    drive(searcher, lambda genome: {"math": genome["layers"] / 3, "code": 1 - genome["layers"] / 3}, 12)
    front = [tuple(point.genome.values()) for point in searcher.explanation().front]
    assert len(set(front)) == len(front) <= 8


def test_standard_errors_change_the_fit():
    values = paraboloids("identity")
    evaluate, explanations = evaluating(values), []
    for wrong in (None, 0.02, 1e6):
        searcher = build({"points": 20, "link": "identity"})
        for number in range(20):
            genome = searcher.ask()
            found = evaluate(genome)
            errors = dict.fromkeys(found, 0.02)
            if wrong is not None and number == 7:
                found, errors = {name: value + 50 for name, value in found.items()}, dict.fromkeys(found, wrong)
            searcher.tell(genome, found, errors)
        explanations.append(searcher.explanation())
    right, misled, warned = ([p.objectives["math"] for p in e.trials.values()] for e in explanations)
    assert np.abs(np.subtract(right, warned)).max() < 0.01
    assert np.abs(np.subtract(right, misled)).max() > 1
    assert min(p.standard_errors["math"] for p in explanations[0].trials.values()) > 0.001


@pytest.mark.parametrize("options", [{}, {"variant": "bayesian", "acquisition": "bins"}], ids=str)
def test_a_function_that_is_not_quadratic_is_flagged_and_its_neighbour_is_not(options):
    def values(points):
        wavy = np.sin(25 * points[:, 0]) * np.sin(20 * points[:, 1])
        return np.stack([wavy, -np.square(points - 0.4).sum(1)], axis=1)

    searcher = build({**options, "link": "identity"})
    drive(searcher, evaluating(values), 40)
    facts = searcher.explanation().surrogates
    assert facts["math"].is_poor
    assert not facts["code"].is_poor


def test_uncertain_surrogates_are_looked_at_elsewhere_than_certain_ones():
    """With three evaluations of ten coefficients, bayesian leaves the predicted front that plain keeps to."""
    spreads = []
    for variant in ("plain", "bayesian"):
        searcher = build({"variant": variant, "points": 3, "batch": 12})
        trials = drive(searcher, evaluating(paraboloids("identity")), 15)
        batch = np.array([list(trial.genome.values()) for trial in trials[3:]])
        assert len(np.unique(batch, axis=0)) == 12
        spreads.append(np.linalg.svd(batch - batch.mean(0), compute_uv=False)[-1])
    assert spreads[1] != spreads[0]


def test_bins_choose_the_first_rounds_alone():
    options = {"variant": "bayesian", "acquisition": "bins", "rounds": 1, "batch": 10, "link": "identity"}
    values = paraboloids("identity")
    trials = drive(build(options), evaluating(values), DESIGN + 20)
    first, second = (
        np.linalg.norm(
            (np.array([list(t.genome.values()) for t in trials[start : start + 10]])[:, None] + 1) / 4 - segment(500),
            axis=2,
        ).min(1)
        for start in (DESIGN, DESIGN + 10)
    )
    assert first.max() > 0.2
    assert second.max() < 0.05


def test_it_explains():
    searcher = build()
    assert isinstance(searcher, Explains)
    assert searcher.explanation() is None
    genome = searcher.ask()
    searcher.tell(genome, {"math": 0.5, "code": 0.5})
    assert searcher.explanation() is None


def test_the_points_worth_confirming_are_those_that_the_trials_lack_most():
    values = paraboloids("identity")
    found = {}
    for confirm in (0, 5, 20, 500):
        searcher = build({"confirm": confirm})
        trials = drive(searcher, evaluating(values), DESIGN + 4)
        found[confirm] = searcher.explanation()
    many = found[500].confirm
    assert [len(found[confirm].confirm) for confirm in (0, 5, 20)] == [0, 5, 20]
    assert found[5].confirm == many[:5]
    assert found[20].confirm == many[:20]
    told_genomes = [trial.genome for trial in trials]
    fresh = {row for row, point in enumerate(found[500].front) if point.genome not in told_genomes}
    assert len(many) == len(set(many)) > 100
    assert set(many) <= fresh
    reached, predicted = told(trials), np.array([list(point.objectives.values()) for point in found[500].front])
    corner = predicted.min(0) - 0.1 * np.ptp(predicted, axis=0)
    chosen = hypervolume(np.concatenate([reached, predicted[list(many[:5])]]), corner)
    draw = np.random.default_rng(0)
    others = [
        hypervolume(np.concatenate([reached, predicted[draw.choice(sorted(fresh), 5, replace=False)]]), corner)
        for _ in range(50)
    ]
    assert chosen > max(others)
