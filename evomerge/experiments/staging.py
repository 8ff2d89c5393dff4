"""Experiments in stages: runs in folders of the run, whose picks are parents of the next, and last the run itself."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.experiments import hybrid, nested
from evomerge.experiments.schema import ExperimentConfig
from evomerge.recipes import NamedRecipe, Recipe, parse_recipes, read_recipe, sources_of, yaml
from evomerge.recipes.files import STAGE_BREAK, plain_data

TREE, JOURNAL = "tree.json", "journal.log"


@dataclass(frozen=True)
class Stage:
    """A run whose pick is a parent later on: its folder, its experiment, and a line that says what begins."""

    folder: Path
    experiment: ExperimentConfig
    note: str


def is_staged(experiment: ExperimentConfig) -> bool:
    """Whether other runs come before the experiment's own trials."""
    return hybrid.space_of(experiment) is not None or nested.is_nested(experiment)


def settled(experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with what its stages need to be known.

    Raises:
        ConfigError: it cannot be run in stages.
    """
    if nested.is_nested(experiment):
        nested.check(experiment)
    return hybrid.settled(experiment)


def to_check(experiment: ExperimentConfig) -> tuple[ExperimentConfig, ...]:
    """Return what can be checked before any work: the experiment, or a hybrid's two stages."""
    return hybrid.stages(settled(experiment))


def is_planned(experiment: ExperimentConfig, folder: Path) -> bool:
    """Whether it is known what the stages are: up a tree, the parents' scores decide who is merged with whom."""
    return not nested.is_nested(experiment) or (folder / TREE).is_file()


def earlier(experiment: ExperimentConfig, folder: Path, names: Sequence[str]) -> Iterator[Stage]:
    """Yield the runs before the experiment's own trials, each after those that it needs.

    Args:
        experiment: settled.
        folder: of the run; of a tree it holds ``tree.json``.
        names: of the objectives.
    """
    if hybrid.space_of(experiment) is not None:
        note = "first stage: merges in parameter space"
        yield Stage(folder / hybrid.FIRST, hybrid.first_stage(experiment), note)
    elif nested.is_nested(experiment):
        nodes = nested.read_tree(folder / TREE)
        for node, line in zip(nodes[:-1], nested.drawn(nodes), strict=False):
            stage = nested.stage(experiment, nodes, node, folder, names)
            yield Stage(nested.model_of(folder, node.name).parent, stage, f"merging {line}")


def last(experiment: ExperimentConfig, folder: Path) -> ExperimentConfig:
    """Return the experiment whose trials the run's own journal holds.

    Raises:
        RunError: it is not known yet.
    """
    if hybrid.space_of(experiment) is not None:
        return hybrid.second_stage(experiment, str((folder / hybrid.FIRST / "model").resolve()))
    if nested.is_nested(experiment):
        nodes = nested.read_tree(folder / TREE)
        return nested.stage(experiment, nodes, nodes[-1], folder, ())
    return experiment


def last_note(experiment: ExperimentConfig, folder: Path) -> str:
    """Return the line that says what the last stage is."""
    if nested.is_nested(experiment):
        return f"merging {nested.drawn(nested.read_tree(folder / TREE))[-1]}"
    return "second stage: paths through the layers of its pick and of the parents"


def merged_models(experiment: ExperimentConfig, folder: Path) -> dict[str, Path]:
    """Return name to folder of the models that earlier stages made, each after those that it is made of."""
    if hybrid.space_of(experiment) is not None:
        return {hybrid.MERGED: (folder / hybrid.FIRST / "model").resolve()}
    if nested.is_nested(experiment):
        nodes = nested.read_tree(folder / TREE)
        return {node.name: nested.model_of(folder, node.name) for node in nodes[:-1]}
    return {}


def whole(recipe: Recipe, experiment: ExperimentConfig, folder: Path) -> tuple[NamedRecipe, ...]:
    """Return a recipe of a run with those of the earlier picks or trials that it merges: it needs the parents alone.

    Args:
        recipe: of one of the run's trials.
        experiment: as it was written.
        folder: of the run, which may have been moved since the recipe was written.

    Raises:
        UnknownNameError: an earlier pick is no longer there.
        RunError: experiment.yaml was changed, so that earlier trials stand for other recipes.
    """
    if sources_of(recipe):
        from evomerge.experiments.lineages import flattened  # Optuna comes with it, and most runs need none

        return flattened(recipe, experiment, folder / JOURNAL)
    from evomerge.merging.to_folder import RECIPE  # torch comes with it, and reading a run needs none

    models = merged_models(experiment, folder)
    own = set(experiment.references.values())
    recipes = {name: _moved(read_recipe(path / RECIPE), models, folder, own) for name, path in models.items()}
    return as_stages(_moved(recipe, models, folder, own), models, recipes)


def _moved(recipe: Recipe, models: Mapping[str, Path], folder: Path, own: Container[str]) -> Recipe:
    """Return the recipe with earlier picks where they are now, if it names them where the run once was."""
    inside = {f"/{path.relative_to(folder.resolve()).as_posix()}": path for path in models.values()}
    now = {
        reference: str(path)
        for reference in recipe.parents()
        for end, path in inside.items()
        if reference.endswith(end) and reference != str(path) and reference not in own
    }
    return Recipe.model_validate(plain_data(recipe, now)) if now else recipe


def as_stages(recipe: Recipe, models: Mapping[str, Path], recipes: Mapping[str, Recipe]) -> tuple[NamedRecipe, ...]:
    """Return a recipe together with those of the models that earlier stages made: it needs the parents alone.

    Args:
        recipe: of the last stage.
        models: name to folder of what earlier stages made, each after those that it is made of.
        recipes: of these models, by name.
    """
    names = {str(path): name for name, path in models.items()}
    needed: set[str] = set()

    def need(one: Recipe) -> None:
        for reference in one.parents():
            name = names.get(reference)
            if name is not None and name not in needed:
                needed.add(name)
                need(recipes[name])

    need(recipe)
    if not needed:
        return (NamedRecipe(recipe),)
    documents = [{"name": name, **plain_data(recipes[name], names)} for name in models if name in needed]
    return parse_recipes(STAGE_BREAK.join(map(yaml.dumps, [*documents, plain_data(recipe, names)])))
