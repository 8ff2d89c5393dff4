"""Estimation: an experiment's objectives from a few items of each task (the second and third step of MERGE^3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evomerge import library
from evomerge.errors import ConfigError, FitnessError, Problem, UnknownNameError
from evomerge.fitness.estimate_config import EstimateConfig
from evomerge.fitness.fitness import Fitness
from evomerge.fitness.irt.adaptive import next_items
from evomerge.fitness.irt.bank import Array, ItemBank, bank_files
from evomerge.fitness.irt.control import SoftScale
from evomerge.fitness.irt.estimate import Estimator, completed, fit_estimator
from evomerge.fitness.irt.extract import Subset, extract, layers_of
from evomerge.fitness.irt.likelihood import abilities
from evomerge.fitness.irt.moments import Rows, ScoreMoments
from evomerge.fitness.objectives import Objective
from evomerge.fitness.responses import Responses

Items = dict[str, tuple[str, ...]]
CALIBRATE = "evomerge calibrate --from EXPERIMENT"  # for hints


class Estimated(NamedTuple):
    """A score and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True, eq=False)
class ObjectiveEstimate:
    """How one objective is estimated.

    Attributes:
        task: key of its task.
        bank: of its metric, with all search items.
        estimator: for the items chosen before the search.
        rotating: whether each recipe is asked others, one of each layer.
    """

    task: str
    bank: ItemBank
    estimator: Estimator
    rotating: bool = False

    @cached_property
    def places(self) -> Mapping[str, int]:
        """From item to its row in the bank."""
        return {item: row for row, item in enumerate(self.bank.items)}

    @cached_property
    def moments(self) -> ScoreMoments:
        """Of the models that the bank was made from."""
        return ScoreMoments.of(self.bank.parameters, completed(self.bank.parameters, self.bank.responses))

    @cached_property
    def layers(self) -> list[Rows]:
        """The items in as many layers of like difficulty as are asked, for items that rotate."""
        return layers_of(completed(self.bank.parameters, self.bank.responses), len(self.estimator.subset.rows))

    @cached_property
    def shares(self) -> Array:
        """What the only item asked of its layer stands for, (items,)."""
        return self._by_layer(lambda layer: len(layer) / len(self.bank.items))

    @cached_property
    def layer_means(self) -> Array:
        """What the models of the bank score in an item's layer, (items,)."""
        means = completed(self.bank.parameters, self.bank.responses).mean(0)
        return self._by_layer(lambda layer: float(means[layer].mean()))

    def _by_layer(self, value: Callable[[Rows], float]) -> Array:
        values = np.empty(len(self.bank.items))
        for layer in self.layers:
            values[layer] = value(layer)
        return values

    def at(self, rows: Rows) -> Estimator:
        """Return the estimator for some items.

        The chosen ones have their weights, and one of each layer its share; of some layers, drawn at random, the mean
        is corrected by how much easier they are than all (a difference estimator: Cochran 1977, section 7.3). Others
        are weighed by the best linear predictor.
        """
        if self.rotating:
            weights = self.shares[rows] / self.shares[rows].sum()
            easier = weights @ self.layer_means[rows] - self.layer_means.mean()
            return replace(self.estimator, subset=Subset(rows, weights, -float(easier)))
        if sorted(rows) == sorted(self.estimator.subset.rows):
            order = {row: n for n, row in enumerate(self.estimator.subset.rows)}
            places = [order[row] for row in rows]
            subset = self.estimator.subset
            return replace(self.estimator, subset=replace(subset, rows=rows, weights=subset.weights[places]))
        return replace(self.estimator, subset=Subset(rows, *self.moments.weights(rows), fitted=True))

    def score(self, values: Mapping[str, float], gold: Mapping[str, float] | None) -> Estimated:
        """Return the estimate from responses, item to value, and from soft responses where they are used."""
        asked = {item: value for item, value in values.items() if item in self.places}
        estimator = self.at(np.array([self.places[item] for item in asked], dtype=np.intp))
        soft = None
        if gold is not None:
            soft = np.full((1, len(self.bank.items)), np.nan)
            soft[0, [self.places[item] for item in gold if item in self.places]] = [
                value for item, value in gold.items() if item in self.places
            ]
        found = estimator(np.array([list(asked.values())]), soft)
        return Estimated(float(found.values[0]), float(found.standard_errors[0]))


@dataclass(frozen=True, eq=False)
class Estimation:
    """The estimates of all objectives.

    Attributes:
        config: the section that asked for them.
        objectives: name to estimate.
        soft: task to the items whose soft responses every trial is asked for, besides those it responds to; empty if
            none are.
    """

    config: EstimateConfig
    objectives: Mapping[str, ObjectiveEstimate]
    soft: Items

    @property
    def items(self) -> Items:
        """The items chosen before the search, by task, the most telling first."""
        chosen: dict[str, dict[str, None]] = {}
        for objective in self.objectives.values():
            names = [objective.bank.items[row] for row in objective.estimator.subset.rows]
            chosen.setdefault(objective.task, {}).update(dict.fromkeys(names))
        return {task: tuple(names) for task, names in chosen.items()}

    def items_of(self, recipe_hash: str) -> Items:
        """Return the items that a recipe is asked: the chosen ones, or its own where they rotate."""
        if self.config.choice != "rotating":
            return self.items
        draw = np.random.default_rng(int(recipe_hash, 16))
        chosen = {}
        for _, objective in self._deciding:
            rows = draw.permutation([draw.choice(layer) for layer in objective.layers])
            chosen[objective.task] = tuple(objective.bank.items[row] for row in rows)
        return chosen

    @property
    def _deciding(self) -> Sequence[tuple[str, ObjectiveEstimate]]:
        """The first objective of each task, with its name: where several share one, it decides on what is asked."""
        first: dict[str, tuple[str, ObjectiveEstimate]] = {}
        for name, objective in self.objectives.items():
            first.setdefault(objective.task, (name, objective))
        return tuple(first.values())

    def gold(self, items: Items, *, first: bool) -> Items:
        """Return the items whose soft responses go with responses to ``items``; those of every trial come first."""
        if self.config.soft is None:
            return {}
        also = self.soft if first else {}
        return {task: tuple(dict.fromkeys((*names, *also.get(task, ())))) for task, names in items.items()}

    def score(self, fitness: Fitness, responses: Responses) -> dict[str, Estimated]:
        """Return each objective's estimate."""
        return {
            name: objective.score(values_of(fitness, responses, name), responses.tasks[objective.task].gold)
            for name, objective in self.objectives.items()
        }

    def more(self, fitness: Fitness, responses: Responses, items: Items, count: int) -> Items:
        """Return at most ``count`` further items of each task, up to those that may be asked.

        They are those that say most of the score, given the responses so far; of items that rotate the next ones of the
        recipe's own ``items``, which are in random order.
        """
        found = {}
        for name, objective in self._deciding:
            values = values_of(fitness, responses, name)
            if objective.rotating:
                if further := items[objective.task][len(values) : len(values) + count]:
                    found[objective.task] = tuple(further)
                continue
            rows = np.array([objective.places[item] for item in values if item in objective.places], dtype=np.intp)
            known = np.array([value for item, value in values.items() if item in objective.places])
            left = min(count, self.config.items - len(values))
            if left > 0:
                more = next_items(objective.bank.parameters, rows, known, left)
                found[objective.task] = tuple(objective.bank.items[row] for row in more)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `read` makes the same estimation of, given the banks."""
        return {
            name: {
                "rows": objective.estimator.subset.rows.tolist(),
                "weights": objective.estimator.subset.weights.tolist(),
                "offset": objective.estimator.subset.offset,
                "fitted": objective.estimator.subset.fitted,
                "parents": None if objective.estimator.parents is None else objective.estimator.parents.tolist(),
                "share": objective.estimator.share,
                "inflation": objective.estimator.inflation,
                "scale": objective.estimator.scale,
                "controls": objective.estimator.controls,
            }
            for name, objective in self.objectives.items()
        }


def values_of(fitness: Fitness, responses: Responses, objective: str) -> dict[str, float]:
    """Return item → value of an objective's task."""
    task = next(o.task for o in fitness.objectives if o.name == objective)
    return dict(zip(responses.tasks[task].items, fitness.item_values(responses, objective), strict=True))


def estimation(
    fitness: Fitness, banks: Mapping[str, ItemBank], parents: Mapping[str, Responses], config: EstimateConfig
) -> Estimation:
    """Choose the items and fit the estimators.

    Args:
        fitness: whose objectives these are.
        banks: objective to the bank of its search items.
        parents: name to responses of the parents to all of these.
        config: what to do.

    Raises:
        ConfigError: more items are asked for than there are.
    """
    soft = soft_items(fitness, config)
    objectives = {}
    for objective in fitness.objectives:
        bank = banks[objective.name]
        known = [values_of(fitness, responses, objective.name) for responses in parents.values()]
        of_parents = np.array([[values[item] for item in bank.items] for values in known])
        at = abilities(bank.parameters, of_parents).means
        full = completed(bank.parameters, bank.responses)
        choice = "stratified" if config.choice == "rotating" else config.choice
        rotating = config.choice == "rotating"
        chosen = extract(choice, config.items, bank.parameters, full, at=at, seed=fitness.config.seed)
        rows = None
        if config.soft:
            also = set(soft[objective.task]) | {bank.items[row] for row in chosen.rows}
            rows = np.array([row for row, item in enumerate(bank.items) if item in also], dtype=np.intp)
        estimator = fit_estimator(config.kind, bank, chosen, of_parents, rows)
        if config.smooth and rotating:  # neighbours take off noise, not the response model's pull to what it knows
            estimator = replace(estimator, share=1.0)
        objectives[objective.name] = ObjectiveEstimate(objective.task, bank, estimator, rotating)
    return Estimation(config, objectives, soft)


def read(
    fitness: Fitness, banks: Mapping[str, ItemBank], data: Mapping[str, Any], config: EstimateConfig
) -> Estimation:
    """Return the estimation that `Estimation.to_json` told of."""
    objectives = {}
    for objective in fitness.objectives:
        bank, entry = banks[objective.name], data[objective.name]
        rows, weights = np.array(entry["rows"], dtype=np.intp), np.array(entry["weights"])
        estimator = Estimator(
            config.kind,
            bank.parameters,
            Subset(rows, weights, entry["offset"], entry["fitted"]),
            None if entry["parents"] is None else np.array(entry["parents"]),
            entry["share"],
            tuple((score, factor) for score, factor in entry["inflation"]),
            None if entry["scale"] is None else SoftScale(*entry["scale"]),
            tuple(entry["controls"]),
        )
        rotating = config.choice == "rotating"
        objectives[objective.name] = ObjectiveEstimate(objective.task, bank, estimator, rotating)
    return Estimation(config, objectives, soft_items(fitness, config))


def soft_items(fitness: Fitness, config: EstimateConfig) -> Items:
    """Return the items whose soft responses every trial is asked for: the first of each task's random order."""
    if config.soft is None:
        return {}
    return {task: items[: config.soft.items] for task, items in fitness.items("search").items()}


def estimate_problems(fitness: Fitness, config: EstimateConfig, where: Callable[[str], str]) -> list[Problem]:
    """Return why the objectives of ``fitness`` cannot be estimated.

    Args:
        fitness: whose objectives these are.
        config: what is asked for.
        where: from a field of the section to words for messages.
    """
    problems = []
    sizes = {task: len(items) for task, items in fitness.items("search").items()}
    for objective in fitness.objectives:
        if objective.aggregation != "mean":
            what = f"{objective.name!r} is no mean over items ({objective.aggregation}), so it cannot be estimated"
            problems.append(Problem(what, where("estimate"), "leave the objective out, or `estimate`"))
        elif sizes.get(objective.task, 0) <= config.items:
            what = f"{objective.name!r} has {sizes.get(objective.task, 0)} search items, and {config.items} are asked"
            hint = "ask for fewer with estimate.items, or raise search_items"
            problems.append(Problem(what, where("estimate.items"), hint))
    dimensions = config.calibration.dimensions
    if config.bank is None and dimensions != "auto" and dimensions > config.items:
        what = f"{config.items} items are fewer than the {dimensions} dimensions of an ability"
        problems.append(Problem(what, where("estimate.items"), "ask for more items, or fewer dimensions"))
    if config.bank is None and dimensions not in (1, "auto") and config.calibration.model != "2pl":
        what = f"several dimensions are not known to the model {config.calibration.model!r}"
        problems.append(Problem(what, where("estimate.calibration"), "several abilities take model: 2pl"))
    if config.adaptive and config.kind == "raw":
        what = "a race asks the items that say most, whose mean response is not the score's"
        problems.append(Problem(what, where("estimate.kind"), "take another kind, such as gmp-irt, or no race"))
    if config.adaptive and config.adaptive.batch >= config.items:
        what = f"batches of {config.adaptive.batch} items, and at most {config.items} are asked"
        problems.append(Problem(what, where("estimate.adaptive.batch"), "make batches smaller than estimate.items"))
    if config.soft:
        problems += fitness.gold_problems(list(dict.fromkeys(o.task for o in fitness.objectives)))
    return problems


def open_banks(fitness: Fitness, config: EstimateConfig, where: str) -> dict[str, ItemBank] | None:
    """Return the named bank of each objective, with those of its items that are search items; None if none is named.

    Banks made from lm-eval's own sample files name the items as lm-eval does; they come back with our ids.

    Raises:
        ConfigError: a bank cannot be read, none or several are of an objective's task and metric, its items no longer
            exist, or they are too few.
    """
    if config.bank is None:
        return None
    found = {path: ItemBank.read(path) for path in _bank_paths(config.bank, where)}
    banks: dict[str, ItemBank] = {}
    problems: list[Problem] = []
    for objective in fitness.objectives:
        try:
            banks[objective.name] = _fitting(objective, found, fitness, config, where)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return banks


def _bank_paths(name: str, where: str) -> Sequence[Path]:
    """Return the banks of a folder, or the one of that name: a path, or a name in the library."""
    named = Path(name).expanduser()
    if named.is_dir():
        found = sorted(path for path in named.rglob("*.safetensors") if bank_files(path)[0].exists())
        if not found:
            what = f"the folder {name} holds no item banks: no NAME.yaml with its NAME.safetensors"
            raise ConfigError(Problem(what, where, f"make some: {CALIBRATE} {name}"))
        return found
    if named.exists() or bank_files(named)[0].exists():
        return [named]
    try:
        return [library.find("fitness", name).path]
    except UnknownNameError:
        what = f"there is no item bank, nor a folder of them, at {name!r}"
        raise ConfigError(Problem(what, where, f"make a folder of them: {CALIBRATE} OUT")) from None


def _fitting(
    objective: Objective, found: Mapping[Path, ItemBank], fitness: Fitness, config: EstimateConfig, where: str
) -> ItemBank:
    bank = _with_our_ids(_alike(objective, found, config, where), objective.task, fitness)
    bank.require(objective.task, objective.metric, fitness.known_items(objective.task), where)
    mine = set(bank.items)
    items = [item for item in fitness.items("search")[objective.task] if item in mine]
    asked, dimensions = config.items, bank.parameters.dimensions
    if asked < dimensions:
        what = f"{asked} items are asked, fewer than the {dimensions} dimensions of the bank of {objective.task!r}"
        hint = f"raise estimate.items to {dimensions} or more, or calibrate with fewer dimensions"
        raise ConfigError(Problem(what, where, hint))
    if len(items) <= asked:
        raise ConfigError(_too_few(objective.task, len(items), bank, fitness, config, where))
    if config.soft and bank.gold is None:
        what = f"the bank of {objective.task!r} has no soft responses, which `soft` needs"
        raise ConfigError(Problem(what, where, f"make one with them, {CALIBRATE} OUT --soft, or leave `soft` out"))
    return bank.only(items)


def _alike(objective: Objective, found: Mapping[Path, ItemBank], config: EstimateConfig, where: str) -> ItemBank:
    """Return the one bank that is of an objective's task and metric."""
    wanted = (objective.task, objective.metric)
    alike = {path: bank for path, bank in found.items() if (bank.task, bank.metric) == wanted}
    if not alike:
        there = ", ".join(dict.fromkeys(f"{bank.task!r} ({bank.metric})" for bank in found.values()))
        what = f"no item bank is of {objective.task!r} ({objective.metric}): {config.bank} has {there}"
        hint = (
            f"make one, {CALIBRATE} OUT; or, if the responses were made with these very settings, correct `task` and "
            "`metric` in the bank's YAML file"
        )
        raise ConfigError(Problem(what, where, hint))
    if len({bank.fingerprint for bank in alike.values()}) > 1:
        names = ", ".join(bank_files(path)[0].name for path in alike)
        what = f"{config.bank} has {len(alike)} item banks of {objective.task!r} ({objective.metric}): {names}"
        raise ConfigError(Problem(what, where, "remove all but one (its two files), or name another folder"))
    return next(iter(alike.values()))


def _with_our_ids(bank: ItemBank, task: str, fitness: Fitness) -> ItemBank:
    """Return a bank made from lm-eval's own sample files under the ids of items that we use."""
    if fitness.known_items(task).issuperset(bank.items):
        return bank
    ours = fitness.lm_eval_ids(task)
    kept = bank.only([item for item in bank.items if ours.get(item, item) is not None])
    return replace(kept, items=tuple(ours.get(item) or item for item in kept.items))


def _too_few(task: str, count: int, bank: ItemBank, fitness: Fitness, config: EstimateConfig, where: str) -> Problem:
    """Say why a bank has only ``count`` of the search items."""
    if fitness.known_items(task, "search").isdisjoint(bank.items):
        what = (
            f"the bank of {task!r} has confirmation items only, which searches must not see: lm-eval evaluates the "
            "test split where there is one"
        )
        hint = (
            f"make one of search items, {CALIBRATE} OUT; or let lm-eval evaluate a copy of the task without "
            "`test_split`, whose `validation_split` is the validation split, or the training split where there is none"
        )
        return Problem(what, where, hint)
    there = len(fitness.items("search")[task])
    what = f"the bank has {count} of the {there} search items of {task!r}, and {config.items} are to be asked"
    return Problem(what, where, f"make one of all search items, {CALIBRATE} OUT, or lower estimate.items")


def partial_banks(fitness: Fitness, banks: Mapping[str, ItemBank]) -> list[Problem]:
    """Return a warning for each bank that lacks some of the search items."""
    problems = []
    for objective in fitness.objectives:
        items = fitness.items("search")[objective.task]
        known = len(banks[objective.name].items) if objective.name in banks else len(items)
        if known < len(items):
            what = f"the bank of {objective.name!r} has {known} of its {len(items)} search items"
            hint = "trials are estimated on these alone, the parents are scored on all: calibrate with --keep-constant"
            problems.append(Problem(what, "", hint))
    return problems


def gold_matrix(items: Sequence[str], gold: Sequence[Mapping[str, float] | None]) -> Array:
    """Return soft responses of models as float64 (models, items), NaN where there is none."""
    return np.array([[(given or {}).get(item, np.nan) for item in items] for given in gold])


def require_units(fitness: Fitness, responses: Responses) -> None:
    """Refuse responses to any objective that are no numbers in [0, 1]; see `require_unit`."""
    for objective in fitness.objectives:
        require_unit(objective.name, values_of(fitness, responses, objective.name))


def require_unit(name: str, values: Mapping[str, float]) -> None:
    """Refuse responses that are no numbers in [0, 1].

    Raises:
        FitnessError: says which.
    """
    for item, value in values.items():
        if not 0 <= value <= 1:
            raise FitnessError(
                f"{name!r} is {value:g} on item {item}: only responses in [0, 1] can be estimated; leave out `estimate`"
            )
