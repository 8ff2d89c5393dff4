"""Launch a search and resume it: the whole of a run, from a checked experiment to a confirmed front and a report."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeError, RunError, WorkerError
from evomerge.experiments import calibration, checks, fronts, hybrid, nested, run_folder, staging
from evomerge.experiments.amortized import read_amortized, write_amortized
from evomerge.experiments.conditions import Conditions
from evomerge.experiments.confirmation import Confirmation, confirm, read_confirmation
from evomerge.experiments.confirming import Model, ask, predictions
from evomerge.experiments.evaluations import Asked, Evaluations, FixedPlan, Polled, unwatched
from evomerge.experiments.export_run import choose, export
from evomerge.experiments.front_file import FrontFile, write_front
from evomerge.experiments.identity import facts_of
from evomerge.experiments.interrupts import Interrupts, watched
from evomerge.experiments.journal import Journal, NotBegunError, Trial, discard
from evomerge.experiments.journals.address import read_address
from evomerge.experiments.journals.server import check_server
from evomerge.experiments.kinship import compared, products_of
from evomerge.experiments.loop import AllFailed, drained, search
from evomerge.experiments.preflight import Prepared, prepare
from evomerge.experiments.racing import EstimatedPlan
from evomerge.experiments.response_store import SUFFIX
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.run_loggers import RunLoggers, open_loggers
from evomerge.experiments.run_workers import RunWorkers, open_workers
from evomerge.experiments.schema import ExperimentConfig, write_experiment
from evomerge.experiments.summarise import objective_infos, reference_rows
from evomerge.experiments.threads import one_thread
from evomerge.experiments.timings import Laps
from evomerge.experiments.tracker import Tracker, row
from evomerge.experiments.worker_watch import WorkerWatch, watching
from evomerge.fitness import Split
from evomerge.fitness.estimation import Estimation, estimation, require_units
from evomerge.fitness.estimation import read as read_estimation
from evomerge.kinship import Products
from evomerge.recipes import Recipe
from evomerge.reports.progress import Display
from evomerge.search_spaces.lineage import lineage_of
from evomerge.searchers import SEARCHERS, Searcher
from evomerge.searchers.surrogates.explanation import Explains, described

FEWEST_FAILURES = 8


@dataclass(frozen=True)
class Ended:
    """How a run ended: ``finished`` with its budget spent and its front confirmed, or interrupted by the user."""

    folder: RunFolder
    finished: bool
    trials: int
    budget: int


def start(experiment: ExperimentConfig, out: Path, display: Display, *, ray_address: str | None = None) -> Ended:
    """Check an experiment and run it in the new folder ``out``.

    Raises:
        ConfigError: the experiment cannot work.
        WorkerError: the workers cannot be built, or every trial failed.

    What is raised before the first trial leaves nothing behind, unless models were evaluated already and no more could
    be written: then there is something to resume.
    """
    experiment, existed = checks.settled(experiment), out.exists()
    if experiment.journal is not None:
        check_server(experiment.journal)
    folder = run_folder.create(out)
    with folder.locked():
        # Written before the slow checks, so that a run killed at any later instant can be resumed.
        run_folder.write_atomically(folder.experiment, write_experiment(experiment))
        try:
            prepared = checks.check(experiment, out=out)[-1]
            if not staging.is_staged(experiment):
                return _carry_on(folder, prepared, display, ray_address)
            return _in_stages(folder, experiment, prepared, display, ray_address)
        except EvomergeError as error:
            evaluated = isinstance(error, RunError) and any(out.rglob(f"{folder.responses.name}/*{SUFFIX}"))
            if not evaluated and not any(_has_trials(RunFolder(j.parent)) for j in out.rglob(folder.journal.name)):
                _undo(folder, existed)
            raise


def _in_stages(
    folder: RunFolder, experiment: ExperimentConfig, prepared: Prepared, display: Display, ray_address: str | None
) -> Ended:
    """Carry on with an experiment in whichever stage it is; ``prepared`` is what could be checked of it."""
    if nested.is_nested(experiment) and not folder.tree.exists():
        scores = _scores_of_parents(folder, prepared, display, ray_address)
        nodes = nested.plan(scores, prepared.objectives, experiment.budget.trials)
        run_folder.write_atomically(folder.tree, nested.write_tree(nodes))
    spent, budget = 0, experiment.budget.trials
    for stage in staging.earlier(experiment, folder.path, [objective.name for objective in prepared.objectives]):
        if RunFolder(stage.folder).model.is_dir():
            spent += stage.experiment.budget.trials
            continue
        display.note(stage.note)
        if RunFolder(stage.folder).experiment.exists():
            ended = resume(stage.folder, display, ray_address=ray_address)
        else:
            ended = start(stage.experiment, stage.folder, display, ray_address=ray_address)
        if not ended.finished:
            return Ended(folder, False, spent + ended.trials, budget)
        spent += ended.trials
        export(stage.folder, None, choose(stage.folder, trial=None, pick=None), display.note)
    display.note(staging.last_note(experiment, folder.path))
    ended = _carry_on(folder, prepare(folder.read_experiment(), out=folder.path), display, ray_address)
    return replace(ended, trials=spent + ended.trials, budget=budget)


def _scores_of_parents(
    folder: RunFolder, prepared: Prepared, display: Display, ray_address: str | None
) -> dict[str, dict[str, float]]:
    """Return the parents' objectives on the search items, by name."""
    display.note("evaluating the parents: the most alike are merged first")
    with (
        watched(display.note) as interrupts,
        open_workers(prepared, display, ray_address, interrupts.install) as workers,
    ):
        evaluations = _evaluations(folder, prepared, workers, "search")
        recipes = {n: recipe for n, (_, recipe) in prepared.reference_recipes.items()}
        wanted = {name: recipes[name] for name in prepared.experiment.parents}
        return {name: trial.objectives or {} for name, trial in _scored(wanted, evaluations, interrupts).items()}


def _evaluations(
    folder: RunFolder, prepared: Prepared, workers: RunWorkers, split: Split, polled: Polled = unwatched
) -> Evaluations:
    """Return evaluations on all items of a split; those of the search lie apart if trials are asked fewer."""
    fitness, estimate = prepared.fitness, prepared.experiment.fitness.estimate
    estimated = estimate is not None and split == "search"
    items = fitness.items(split)
    soft = items if estimated and estimate and estimate.soft else {}
    plan = FixedPlan("calibration" if estimated else split, fitness, Asked(items, soft))
    return Evaluations(workers.pool, plan, folder.responses, polled, lineage_of(prepared.space))


def _scored(recipes: Mapping[str, Recipe], evaluations: Evaluations, interrupts: Interrupts) -> dict[str, Trial]:
    """Evaluate models that no searcher proposed.

    Raises:
        WorkerError: one cannot be evaluated.
        KeyboardInterrupt: the user asked to stop.
    """
    for name, recipe in recipes.items():
        evaluations.start(recipe, label=name)
    found = {}
    for name, recipe in recipes.items():
        if interrupts.stopping():
            raise KeyboardInterrupt
        found[name] = evaluations.trial(0, {}, recipe)
        if found[name].failed:
            raise WorkerError(f"{name} could not be evaluated, so no merge of it can:\n{found[name].error}")
    return found


def _has_trials(folder: RunFolder) -> bool:
    try:
        return bool(Journal.read(folder.journal).trials())
    except NotBegunError:
        return False
    except EvomergeError:  # it may have some: its server is away, or its disk
        return True


def _undo(folder: RunFolder, existed: bool) -> None:
    """Remove what a run that failed before its first trial left, so that it can be started again once mended."""
    stages = (folder.path / hybrid.FIRST, folder.path / nested.FOLDER)
    for journal in (folder.journal, *(journal for stage in stages for journal in stage.rglob(folder.journal.name))):
        discard(journal)
    if not existed:
        shutil.rmtree(folder.path)
        return
    for made in (folder.responses, folder.banks, folder.path / hybrid.FIRST, folder.path / nested.FOLDER):
        shutil.rmtree(made, ignore_errors=True)
    for path in (folder.experiment, folder.front, folder.tree):
        path.unlink(missing_ok=True)


def resume(
    path: Path,
    display: Display,
    *,
    ray_address: str | None = None,
    extend_trials: int = 0,
    loggers: Sequence[str] = (),
) -> Ended:
    """Go on with the run in ``path`` exactly where it stopped; with ``extend_trials``, with a larger budget.

    ``loggers`` are told all trials, those before included, beside the experiment's own, and belong to it from now on.

    Raises:
        RunError: there is no run, another process holds it, or its parents or items changed.
    """
    folder = RunFolder(path)
    experiment = folder.read_written()
    with folder.locked():
        address = read_address(folder.journal)
        if address is not None:
            check_server(address.url)
        if extend_trials:
            _check_finished(folder, folder.read_experiment())
            trials = experiment.budget.trials + extend_trials
            budget = experiment.budget.model_copy(update={"trials": trials})
            experiment = experiment.model_copy(update={"budget": budget})
        if added := [name for name in loggers if name not in experiment.loggers]:
            experiment = experiment.model_copy(update={"loggers": [*experiment.loggers, *added]})
        prepared = checks.check(experiment, out=path)[-1]
        if extend_trials:
            folder.confirmation.unlink(missing_ok=True)  # of the shorter run
        if extend_trials or added:
            run_folder.write_atomically(folder.experiment, write_experiment(experiment))
        if not staging.is_staged(experiment):
            return _carry_on(folder, prepared, display, ray_address)
        return _in_stages(folder, experiment, prepared, display, ray_address)


def _check_finished(folder: RunFolder, experiment: ExperimentConfig) -> None:
    done = len(Journal.read(folder.journal).trials()) if folder.journal.exists() else 0
    if done < experiment.budget.trials:
        raise RunError(
            f"{folder.path} has {done} of {experiment.budget.trials} trials: finish it first (`evomerge resume "
            f"{folder.path}`), then extend it"
        )


def _carry_on(folder: RunFolder, prepared: Prepared, display: Display, ray_address: str | None) -> Ended:
    experiment = prepared.experiment
    for warning in prepared.warnings:
        display.note(f"warning: {warning}")
    with (
        Journal.write(
            folder.journal, experiment.name, prepared.objectives, url=experiment.journal, note=display.note
        ) as journal,
        watched(display.note) as interrupts,
        open_workers(prepared, display, ray_address, interrupts.install) as workers,
        watching(folder.workers, workers.states, display.workers, display.note) as watch,
        open_loggers(folder, experiment, journal, display.note) as loggers,
    ):
        facts = facts_of(folder, journal, prepared, workers, display)
        _settle_batch_sizes(journal, prepared, workers)
        run = _Run(folder, prepared, journal, workers, display, interrupts, facts, watch, loggers)
        references = run.references()
        run.calibrate()
        loggers.begin(references)
        with one_thread():
            tracker = run.search(references)
        done, budget = tracker.done, experiment.budget.trials
        if done < budget or (interrupts.stopping() and read_confirmation(folder.confirmation) is None):
            display.finished(f"stopped after {done} of {budget} trials")
            return Ended(folder, False, done, budget)
        with one_thread():
            confirmation = run.confirm(tracker)
        loggers.confirmed(confirmation)
        display.finished(f"{budget} trials, {len(tracker.front)} on the front; picked {confirmation.picked.label}")
    return Ended(folder, True, done, budget)


def _settle_batch_sizes(journal: Journal, prepared: Prepared, workers: RunWorkers) -> None:
    """Have every session of the run work in batches of the same sizes, where these are to be found."""
    if prepared.experiment.fitness.batch_size != "auto":
        return
    workers.batch_sizes = journal.facts().get("batch_sizes")
    if workers.batch_sizes is None:
        workers.pool()
        journal.note("batch_sizes", workers.batch_sizes)


class _Run:
    """One session of a run; each method is one stage."""

    def __init__(
        self,
        folder: RunFolder,
        prepared: Prepared,
        journal: Journal,
        workers: RunWorkers,
        display: Display,
        interrupts: Interrupts,
        facts: Mapping[str, Any],
        watch: WorkerWatch,
        loggers: RunLoggers,
    ) -> None:
        self.folder, self.prepared, self.journal, self.workers = folder, prepared, journal, workers
        self.display, self.interrupts, self.facts = display, interrupts, facts
        self.watch, self.loggers = watch, loggers
        self.estimate = prepared.experiment.fitness.estimate
        self.estimation: Estimation | None = None
        self.race: EstimatedPlan | None = None

    def evaluations(self, split: Split) -> Evaluations:
        """Return evaluations on all items of a split."""
        return _evaluations(self.folder, self.prepared, self.workers, split, self.watch.poll)

    def calibrate(self) -> None:
        """Choose the items that trials are asked, and fit how their scores are estimated, once."""
        if self.estimate is None:
            return
        fitness = self.prepared.fitness
        names = [objective.name for objective in fitness.objectives]
        recorded = self.journal.facts().get("estimation")
        if recorded is not None:
            banks = calibration.read_banks(self.folder.banks, names)
            self.estimation = read_estimation(fitness, banks, recorded, self.estimate)
            return
        evaluations, stopping = self.evaluations("search"), self.interrupts.stopping
        kinds = {name: kind for name, (kind, _) in self.prepared.reference_recipes.items()}
        recipes = {name: recipe for name, (_, recipe) in self.prepared.reference_recipes.items()}
        for recipe in recipes.values():
            require_units(fitness, evaluations.responses(recipe))
        banks = dict(self.prepared.banks or {})
        if not banks:
            merges = calibration.random_merges(self.prepared, self.estimate.calibration)
            self.display.note(f"calibrating items: {len(merges)} random merges on all search items")
            recipes |= merges
        found = calibration.gather(recipes, evaluations, self.display.note, stopping)
        parents = [name for name in found if kinds.get(name) in ("parent", "base")]
        if not banks:
            banks = calibration.make_banks(fitness, found, parents, self.estimate.calibration)
        calibration.write_banks(self.folder.banks, banks)
        banks = calibration.read_banks(self.folder.banks, names)  # rounded, as a resumed session has them
        self.estimation = estimation(fitness, banks, {name: found[name] for name in parents}, self.estimate)
        self.journal.note("calibration", sorted(found))
        self.journal.note("estimation", self.estimation.to_json())

    def references(self) -> list[dict[str, Any]]:
        """Score the base, the parents and the uniform merge on the search items, once."""
        recorded = self.journal.facts().get("references")
        if recorded is not None:
            return list(recorded)
        recipes = self.prepared.reference_recipes
        self.display.note("evaluating the parents and their uniform merge")
        found = _scored({name: r for name, (_, r) in recipes.items()}, self.evaluations("search"), self.interrupts)
        references = [
            {
                "name": name,
                "kind": recipes[name][0],
                "objectives": trial.objectives,
                "truncated": trial.truncated,
                "unextracted": trial.unextracted,
            }
            for name, trial in found.items()
        ]
        self.journal.note("references", references)
        return references

    def search(self, references: list[dict[str, Any]]) -> Tracker:
        """Run the trials that the journal does not hold yet."""
        experiment, recorded = self.prepared.experiment, deque(self.journal.trials())
        known = len(recorded)
        budget, space = experiment.budget.trials, self.prepared.space
        lineage = lineage_of(space)
        objectives = self.prepared.objectives
        corner = fronts.reference_point([r["objectives"] for r in references], objectives)
        tracker = Tracker(objectives, corner, self.prepared.known_front)
        all_failed = AllFailed(max(FEWEST_FAILURES, 2 * self.facts["in_flight"]))
        self.display.started(experiment.name, objective_infos(self.facts), budget, known, reference_rows(references))

        evaluations, self.race = self.trial_evaluations()
        laps = Laps(lambda: evaluations.waited)
        conditions = Conditions(self.display.note)
        front = FrontFile(self.folder.front, self.recipe)

        def record(trial: Trial) -> None:
            tracker.add(trial)
            driver, wait = laps.lap()
            trial = replace(
                trial,
                front=tracker.quality.to_json(),
                driver_seconds=driver,
                wait_seconds=wait,
                workers=self.workers.count,
            )
            self.journal.append(trial, space.genes)
            self.loggers.told(trial, tracker.failed)

        def told(trial: Trial, in_flight: int) -> None:
            if trial.number < known:
                tracker.add(trial)
                self.loggers.told(trial, tracker.failed)
            conditions.check(trial)
            if lineage is not None:
                lineage.told(trial.genome, trial.recipe_hash, failed=trial.failed)
            if self.race is not None:
                self.race.told(trial)
            replaying = trial.number < known - 1
            if not replaying:
                front.update(tracker.front)
            if trial.number >= known:
                self.display.told(
                    row(trial, on_front=tracker.changed),
                    tracker.progress(budget, in_flight, self.workers.count),
                )
            elif not replaying:
                tracker.start_clock()
                laps.restart()
            all_failed.check(trial, last=trial.number == budget - 1)

        tracker.start_clock()
        laps.restart()
        evaluations.recall(recorded)
        entry = SEARCHERS[experiment.searcher.kind]
        searcher = self.prepared.searcher(budget, self.kinship() if entry.kinship else None)
        search(
            searcher,
            space,
            evaluations,
            recorded=drained(recorded),
            record=record,
            told=told,
            budget=budget,
            in_flight=self.facts["in_flight"],
            stop=self.interrupts.stopping,
            own=entry.weighs_errors,
            item_scores=partial(evaluations.item_scores, fitness=self.prepared.fitness) if entry.per_item else None,
        )
        self.explain(searcher)
        confirmation = read_confirmation(self.folder.confirmation)
        of_this = confirmation is not None and confirmation.run_trials == tracker.done
        self.write_front(tracker, confirmation if of_this else None)
        return tracker

    def kinship(self) -> Products:
        """Return what the kinship of the parents follows from, read from their weights once in a run."""
        recorded = self.journal.facts().get("kinship")
        if recorded is None:
            self.display.note("comparing the parents: kinship of their task vectors")
            found = products_of(compared(self.prepared.experiment), self.prepared.parents)[""]
            recorded = found.to_json()
            self.journal.note("kinship", recorded)
        return Products.from_json(recorded)

    def explain(self, searcher: Searcher) -> None:
        """Keep what the searcher learnt, if it is one that can say it."""
        explanation = searcher.explanation() if isinstance(searcher, Explains) else None
        if explanation is None:
            return
        write_amortized(self.folder.amortized, explanation, self.prepared.space)
        for line in described(explanation.surrogates):
            self.display.note(line)

    def trial_evaluations(self) -> tuple[Evaluations, EstimatedPlan | None]:
        """Return the evaluations of trials, and what races them if they are estimated."""
        if self.estimation is None:
            return self.evaluations("search"), None
        prepared = self.prepared
        names = set(self.journal.facts()["calibration"])
        genomes = calibration.random_genomes(prepared, self.estimation.config.calibration)
        known = [
            (
                genome,
                {
                    o: float(e.bank.responses[e.bank.models.index(name)].mean())
                    for o, e in self.estimation.objectives.items()
                },
            )
            for name, genome in genomes.items()
            if name in names
        ]
        plan = EstimatedPlan(prepared.fitness, self.estimation, prepared.objectives, prepared.space.genes, known)
        polled, lineage = self.watch.poll, lineage_of(prepared.space)
        return Evaluations(self.workers.pool, plan, self.folder.responses, polled, lineage), plan

    def confirm(self, tracker: Tracker) -> Confirmation:
        """Evaluate the front, predictions and the reference models on the confirmation items, and pick."""
        models = [Model(name, kind, None, recipe) for name, (kind, recipe) in self.prepared.reference_recipes.items()]
        models += [Model(f"trial {t.number}", "trial", t.number, self.recipe(t)) for t in self.to_confirm(tracker)]
        amortized = read_amortized(self.folder.amortized)
        predicted = predictions(amortized, self.journal.trials()) if amortized else []
        what = f", {len(predicted)} of them points of the predicted front," if predicted else ""
        self.display.note(f"confirming {len(models) + len(predicted)} models{what} on items that the search never saw")
        answered = ask(
            [*models, *predicted], self.evaluations("confirmation"), self.prepared.fitness, self.display.note
        )
        if not any(model.kind == "trial" for model in answered):
            raise WorkerError("none of the front's trials could be confirmed; the reasons are above")
        rule = self.prepared.experiment.pick
        if rule.startswith("trial:") and int(rule.removeprefix("trial:")) not in [m.trial for m in answered]:
            self.display.note(f"warning: {rule} failed, so the pick is by best-mean")
            rule = "best-mean"
        confirmation = confirm(answered, self.prepared.fitness, self.prepared.objectives, rule, tracker.done)
        run_folder.write_json(self.folder.confirmation, confirmation.to_json())
        self.write_front(tracker, confirmation)
        return confirmation

    def to_confirm(self, tracker: Tracker) -> list[Trial]:
        """Return the front, and the trial that the experiment picks by number if it is not on it."""
        rule = self.prepared.experiment.pick
        wanted = int(rule.removeprefix("trial:")) if rule.startswith("trial:") else None
        trials = self.journal.trials() if wanted is not None or self.race is not None else []
        front = tracker.front if self.race is None else self.race.final_front(trials)
        extra = [t for t in trials if t.number == wanted and t not in front and not t.failed]
        return front + extra

    def recipe(self, trial: Trial) -> Recipe:
        """Return a trial's recipe."""
        return self.prepared.space.express(trial.genome)

    def write_front(self, tracker: Tracker, confirmation: Confirmation | None) -> None:
        """Bring ``front.jsonl`` up to date."""
        shown = tracker.front
        if self.race is not None and confirmation is not None:
            shown = self.race.final_front(self.journal.trials())
        genomes = {n: p.genome for n, p in confirmation.predictions.items()} if confirmation else {}
        predicted = {number: self.prepared.space.express(genome) for number, genome in genomes.items()}
        write_front(self.folder.front, [(trial, self.recipe(trial)) for trial in shown], confirmation, predicted)
