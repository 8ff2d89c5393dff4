"""The loop: order of telling, replay, failures."""

import random
from collections import deque
from collections.abc import Mapping

import pytest

from evomerge.errors import RunError, WorkerError
from evomerge.experiments.identity import usual_in_flight
from evomerge.experiments.journal import Trial
from evomerge.experiments.loop import AllFailed, Candidate, drained, search
from evomerge.recipes import ModelInput, Recipe
from evomerge.search_spaces.genes import FloatGene, Genome


class Echo:
    """A searcher whose proposals depend on everything told so far, and that logs its calls."""

    def __init__(self, generation: int | None = None) -> None:
        self.asked, self.told, self.log, self.generation = 0, [], [], generation

    def ask(self) -> dict[str, float] | None:
        if self.generation and self.asked - len(self.told) > 0 and self.asked % self.generation == 0:
            return None
        self.log.append(("ask", self.asked, len(self.told)))
        state = random.Random(repr((self.asked, self.told)))
        self.asked += 1
        return {"x": state.random()}

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        self.told.append((genome["x"], None if objectives is None else objectives["f"]))


class Line:
    """A search space of one gene."""

    genes = (FloatGene("x", 0.0, 1.0, 0.5),)

    def express(self, genome: Genome) -> Recipe:
        return Recipe(merge_method="linear", models=(ModelInput(model="p", parameters={"weight": genome["x"]}),))

    def starting_points(self) -> list[Genome]:
        return []


class Instant:
    """An evaluator that answers at once; counts evaluations; some fail."""

    def __init__(self, fail: bool = False) -> None:
        self.started: list[str] = []
        self.fail = fail

    def start(self, recipe: Recipe, genome: object) -> None:
        self.started.append(recipe.hash)

    def wind_up(self) -> None:
        pass

    def finish(self, candidate: Candidate) -> Trial:
        value = None if self.fail or candidate.number % 5 == 3 else {"f": float(candidate.genome["x"]) ** 2}
        error = "ValueError: no" if value is None else None
        return Trial(candidate.number, dict(candidate.genome), value, candidate.recipe.hash, error)


def run(searcher: Echo, recorded: list[Trial], budget: int = 30, in_flight: int = 4, **options: object) -> list[Trial]:
    trials = list(recorded)
    evaluator = options.pop("evaluator", None) or Instant()
    search(
        searcher,
        Line(),
        evaluator,
        recorded=list(recorded),
        record=trials.append,
        told=lambda trial, open_: None,
        budget=budget,
        in_flight=in_flight,
        **options,
    )
    return trials


def test_candidate_k_is_asked_once_exactly_the_trials_up_to_k_minus_w_are_told() -> None:
    searcher = Echo()
    run(searcher, [], in_flight=4)
    assert searcher.log == [("ask", k, max(0, k - 3)) for k in range(30)]


def test_a_searcher_with_generations_is_asked_when_its_generation_is_told() -> None:
    searcher = Echo(generation=5)
    run(searcher, [], budget=20, in_flight=8)
    assert [told for _, k, told in searcher.log if k % 5 == 0] == [0, 5, 10, 15]


@pytest.mark.parametrize("killed_after", [0, 1, 3, 4, 5, 17, 29, 30])
@pytest.mark.parametrize("generation", [None, 6])
def test_a_run_resumed_from_any_journal_goes_on_as_if_never_stopped(killed_after: int, generation: int | None) -> None:
    whole = run(Echo(generation), [])
    evaluator = Instant()
    assert run(Echo(generation), whole[:killed_after], evaluator=evaluator) == whole
    assert len(evaluator.started) == 30 - killed_after


def test_extending_a_finished_run_equals_a_longer_run() -> None:
    assert run(Echo(), run(Echo(), [], budget=20), budget=30) == run(Echo(), [], budget=30)


def test_stopping_lets_the_trials_in_flight_finish_and_the_rest_resumes() -> None:
    whole = run(Echo(), [])
    calls = iter([False] * 10 + [True] * 1000)
    stopped = run(Echo(), [], stop=lambda: next(calls))
    assert 0 < len(stopped) < 30
    assert stopped == whole[: len(stopped)]
    assert run(Echo(), stopped) == whole


def test_stopping_drops_what_nobody_began_with() -> None:
    """Of 8 candidates in flight 3 are at work when the run is stopped: these are told, in ask order, and no more."""

    class Three(Instant):
        begun: set[str] | None = None

        def wind_up(self) -> None:
            if self.begun is None:
                self.begun = set(self.started[-8:-5])

        def finish(self, candidate: Candidate) -> Trial | None:  # type: ignore[override]
            return (
                None
                if self.begun is not None and candidate.recipe.hash not in self.begun
                else super().finish(candidate)
            )

    whole = run(Echo(), [])
    calls = iter([False] * 10 + [True] * 1000)
    stopped = run(Echo(), [], evaluator=Three(), stop=lambda: next(calls))
    assert stopped == whole[: len(stopped)]
    assert run(Echo(), stopped) == whole


def test_a_journal_of_another_search_is_refused_by_gene() -> None:
    trials = run(Echo(), [])
    trials[2] = Trial(2, {"x": 0.125}, {"f": 0.0}, "h")
    with pytest.raises(RunError, match=r"trial 2 has x = 0\.125, but the searcher now proposes"):
        run(Echo(), trials)


def test_a_run_whose_trials_all_fail_stops_with_the_first_error() -> None:
    check = AllFailed(limit=4)
    for number in range(3):
        check.check(Trial(number, {}, None, "h", f"ValueError: trial {number}"), last=False)
    with pytest.raises(WorkerError, match=r"all 4 trials failed(.|\n)*first one failed with:\n.*trial 0"):
        check.check(Trial(3, {}, None, "h", "ValueError: trial 3"), last=False)


def test_a_short_run_whose_trials_all_fail_is_an_error_too() -> None:
    check = AllFailed(limit=100)
    check.check(Trial(0, {}, None, "h", "boom"), last=False)
    with pytest.raises(WorkerError, match="all 2 trials failed"):
        check.check(Trial(1, {}, None, "h", "boom"), last=True)


def test_one_success_lets_the_search_go_on() -> None:
    check = AllFailed(limit=2)
    check.check(Trial(0, {}, {"f": 1.0}, "h"), last=False)
    for number in range(1, 9):
        check.check(Trial(number, {}, None, "h", "boom"), last=number == 8)


@pytest.mark.parametrize(("own", "expected"), [(False, ({"f": 0.5}, {"f": 0.1})), (True, ({"f": 0.8}, {"f": 0.3}))])
def test_a_searcher_that_weighs_errors_is_told_what_is_not_smoothed(own: bool, expected: tuple) -> None:
    class Smoothing(Instant):
        def finish(self, candidate: Candidate) -> Trial:
            smoothed = {"standard_errors": {"f": 0.1}, "own": {"f": [0.8, 0.3]}}
            return Trial(candidate.number, dict(candidate.genome), {"f": 0.5}, candidate.recipe.hash, **smoothed)

    class Listening(Echo):
        def tell(self, genome, objectives, standard_errors=None) -> None:
            super().tell(genome, objectives)
            self.heard.append((objectives, standard_errors))

    searcher = Listening()
    searcher.heard = []
    run(searcher, [], budget=3, evaluator=Smoothing(), own=own)
    assert searcher.heard == [expected] * 3


def test_a_journal_is_let_go_of_as_it_is_replayed():
    trials = deque(range(5))
    replay = drained(trials)
    assert [next(replay), next(replay)] == [0, 1]
    assert list(trials) == [2, 3, 4]
    assert list(replay) == [2, 3, 4]
    assert not trials


@pytest.mark.parametrize(("workers", "expected"), [(1, 8), (2, 8), (4, 8), (8, 20), (64, 256), (256, 1280)])
def test_more_candidates_are_in_flight_for_more_workers(workers, expected):
    assert usual_in_flight(workers, learns=True) == expected
    assert usual_in_flight(workers, learns=False) == 32 * workers
