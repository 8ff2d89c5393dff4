"""Nested MAP: many parents are merged two at a time, up a tree, so that no search is over more than two.

Li et al. 2025 (https://arxiv.org/abs/2406.07529, algorithm 3). A node of the tree is a run of its own: it merges two
models, is scored only on the objectives of the parents below it, and its pick, by the preference, is one of the two
models of the next node. With T parents there are T − 1 nodes of equal budgets, and each of the log₂ T levels is scored
on each objective once, so the cost grows as T log T. An objective belongs to the parent that is best at it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evomerge.errors import ConfigError, Problem, RunError
from evomerge.experiments.schema import NICKNAME, ExperimentConfig
from evomerge.fitness import FitnessConfig
from evomerge.search_spaces.parameter_config import ParameterSpaceConfig
from evomerge.searchers import ObjectiveSpec
from evomerge.searchers.map import MapConfig

FOLDER = "tree"  # of the nodes' runs, in that of the run
PREFIX = "merged-"  # of the nodes' names
FEWEST = 8  # trials of a node


@dataclass(frozen=True)
class Node:
    """One merge of the tree: of two parents or nodes, by name; the objectives are those of the parents below."""

    name: str
    left: str
    right: str
    objectives: tuple[str, ...]
    trials: int


def is_nested(experiment: ExperimentConfig) -> bool:
    """Whether the experiment merges up a tree."""
    searcher = experiment.searcher
    return isinstance(searcher, MapConfig) and searcher.variant == "nested" and len(experiment.parents) > 2


def problems_of(experiment: ExperimentConfig) -> list[Problem]:
    """Return why the experiment cannot be merged up a tree."""
    problems, nodes = [], len(experiment.parents) - 1
    if not isinstance(experiment.search_space, ParameterSpaceConfig):
        what = "nested merging is over search spaces of the kind parameter"
        problems.append(Problem(what, experiment.where(("search_space", "kind")), "use variant: plain"))
    if experiment.merge.fields:
        what = "nested merging starts each merge from two plain models, so it takes no fields of `merge`"
        problems.append(Problem(what, experiment.where(("merge",)), "leave them out, or use variant: plain"))
    if experiment.budget.trials < nodes * FEWEST:
        what = f"{experiment.budget.trials} trials are {experiment.budget.trials // nodes} for each of {nodes} merges"
        problems.append(Problem(what, experiment.where(("budget", "trials")), f"give at least {nodes * FEWEST}"))
    for name in experiment.parents:
        if name.startswith(PREFIX):
            what = f"{name!r} may be the name of a merge of the tree"
            problems.append(Problem(what, experiment.where(("parents", name)), "give this parent another name"))
    return problems


def plan(
    scores: Mapping[str, Mapping[str, float]], objectives: Sequence[ObjectiveSpec], trials: int
) -> tuple[Node, ...]:
    """Return the nodes of the tree, each after those below it; the last is the root.

    At each level those two are merged first that are the most alike in how good they are at their own objectives, as in
    the authors' code; an odd one waits for the next level.

    Args:
        scores: of each parent in each objective.
        objectives: in their order.
        trials: of the whole tree.
    """
    gain = {
        name: {o.name: (1 if o.direction == "maximize" else -1) * row[o.name] for o in objectives}
        for name, row in scores.items()
    }
    owner = {o.name: _best_at(o.name, gain) for o in objectives}
    own = {name: tuple(objective for objective, best in owner.items() if best == name) for name in gain}
    skill = {name: _mean([gain[name][o] for o in own[name] or list(owner)]) for name in gain}
    nodes: list[Node] = []
    level = list(gain)
    each = trials // (len(level) - 1)
    while len(level) > 1:
        above = []
        while len(level) > 1:
            pairs = [(left, right) for n, left in enumerate(level) for right in level[n + 1 :]]
            left, right = min(pairs, key=lambda pair: abs(skill[pair[0]] - skill[pair[1]]))
            level = [name for name in level if name not in (left, right)]
            name = f"{PREFIX}{len(nodes) + 1}"
            own[name] = tuple(o.name for o in objectives if o.name in (*own[left], *own[right]))
            skill[name] = (skill[left] + skill[right]) / 2
            nodes.append(Node(name, left, right, own[name] or tuple(owner), each))
            above.append(name)
        level = above + level
    return tuple(nodes)


def write_tree(nodes: Sequence[Node]) -> str:
    """Return the tree as JSON."""
    return json.dumps([asdict(node) for node in nodes], indent=2) + "\n"


def read_tree(path: Path) -> tuple[Node, ...]:
    """Return the nodes of a run's tree.

    Raises:
        RunError: it is not there yet, or damaged.
    """
    try:
        nodes = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(nodes, list) or not nodes:
            raise ValueError("it lists no merges")
        read = tuple(Node(**{**node, "objectives": tuple(node["objectives"])}) for node in nodes)
        if foreign := [node.name for node in read if not NICKNAME.match(str(node.name))]:
            raise ValueError(f"{foreign[0]!r} cannot be the name of a folder")
        return read
    except FileNotFoundError as error:
        raise RunError(
            f"{path} does not exist: who is merged with whom is known once all parents are evaluated; wait if the run "
            f"goes on, else `evomerge resume {path.parent}`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}): start a new run") from error


def stage(
    experiment: ExperimentConfig, nodes: Sequence[Node], node: Node, folder: Path, names: Sequence[str]
) -> ExperimentConfig:
    """Return the experiment of one node.

    Args:
        experiment: the whole.
        nodes: of its tree.
        node: one of them; of the root the trials are those that the others leave.
        folder: of the run; what other nodes picked lies in ``tree/NAME/model``.
        names: of all objectives, in their order.
    """
    searcher = experiment.searcher
    assert isinstance(searcher, MapConfig)
    models = dict(experiment.parents) | {each.name: str(model_of(folder, each.name)) for each in nodes}
    is_root = node is nodes[-1]
    trials = experiment.budget.trials - sum(each.trials for each in nodes[:-1]) if is_root else node.trials
    prefer = {name: weight for name, weight in searcher.prefer.items() if name in node.objectives}
    listed = ",".join(f"{name}={weight!r}" for name, weight in prefer.items())
    update = {
        "name": experiment.name if is_root else f"{experiment.name}-{node.name}",
        "parents": {name: models[name] for name in (node.left, node.right)},
        "also_score": {
            name: reference
            for name, reference in (experiment.also_score | experiment.parents).items()
            if is_root and name not in (node.left, node.right)
        },
        "fitness": experiment.fitness if is_root else _of(experiment.fitness, names, node.objectives),
        "searcher": searcher.model_copy(update={"variant": "plain", "prefer": {}}),
        "budget": experiment.budget.model_copy(update={"trials": trials}),
        "pick": experiment.pick if is_root and not listed else f"prefer:{listed}",
    }
    return experiment.model_copy(update=update)


def model_of(folder: Path, name: str) -> Path:
    """Return where the pick of a node lies."""
    return folder.resolve() / FOLDER / name / "model"


def drawn(nodes: Sequence[Node]) -> list[str]:
    """Return the tree in lines: who is merged with whom, and what for."""
    return [f"{node.name} = {node.left} + {node.right}, on {', '.join(node.objectives)}" for node in nodes]


def _of(fitness: FitnessConfig, names: Sequence[str], wanted: Sequence[str]) -> FitnessConfig:
    named = zip(fitness.objectives, names, strict=True)
    kept = tuple(objective.model_copy(update={"name": name}) for objective, name in named if name in wanted)
    return fitness.model_copy(update={"objectives": kept})


def _best_at(objective: str, gain: Mapping[str, Mapping[str, float]]) -> str:
    return max(gain, key=lambda name: gain[name][objective])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def check(experiment: ExperimentConfig) -> None:
    """Check that the experiment can be merged up a tree.

    Raises:
        ConfigError: it cannot.
    """
    problems = problems_of(experiment)
    if problems:
        raise ConfigError(problems)
