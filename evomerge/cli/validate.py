"""``evomerge validate``: check a file without running it."""

from __future__ import annotations

import click

from evomerge import library
from evomerge.cli.library import find


@click.command()
@click.argument("name")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a field of an experiment.")
def command(name: str, overrides: tuple[str, ...]) -> None:
    """Check the experiment, recipe or search space NAME (a file or a shipped name) and all that it refers to."""
    kind, path = kind_of(name)
    if kind == "experiments":
        from evomerge.experiments.checks import check
        from evomerge.experiments.schema import read_experiment

        checked = check(read_experiment(path, overrides))
        prepared = checked[0]
        for warning in dict.fromkeys(warning for stage in checked for warning in stage.warnings):
            click.secho(f"warning: {warning}", fg="yellow")
        counts = {s: sum(map(len, prepared.fitness.items(s).values())) for s in ("search", "confirmation")}
        genes = " and ".join(str(len(stage.space.genes)) for stage in checked)
        click.echo(
            f"{path}: a valid experiment: {genes} genes, {len(prepared.objectives)} objectives, "
            f"{counts['search']} search and {counts['confirmation']} confirmation items"
        )
    elif kind == "recipes":
        from evomerge.errors import ConfigError
        from evomerge.merging import Parents, check_recipe
        from evomerge.merging.stages import check_stages
        from evomerge.recipes import read_recipes

        stages = read_recipes(path)
        if len(stages) > 1:
            opened, problems = check_stages(stages)
        else:
            parents = Parents.open(stages[0].recipe.parents())
            opened, problems = parents.checkpoints, check_recipe(stages[0].recipe, parents)
        if problems:
            raise ConfigError(problems)
        told = f" in {len(stages)} stages" if len(stages) > 1 else ""
        click.echo(f"{path}: a valid recipe of {len(opened)} models{told}")
    elif kind == "search_spaces":
        from evomerge.recipes import yaml
        from evomerge.search_spaces import read_search_space

        read_search_space(path, yaml.Document({}, path), ())
        click.echo(f"{path}: a valid search space")
    else:
        from evomerge.fitness import Fitness, FitnessConfig

        Fitness(FitnessConfig.model_validate({"objectives": [{"task": path}]}))
        click.echo(f"{path}: a valid task")


def kind_of(name: str) -> tuple[library.Kind, str]:
    """Return what kind of file ``name`` is, and its path; an unknown file is told by its fields."""
    entry = find(name)
    from evomerge.recipes import yaml

    data = yaml.loads_all(yaml.read(entry.path), str(entry.path))[0].data
    fields = set(data) if isinstance(data, dict) else set()
    if entry.origin != "path":
        return entry.kind, str(entry.path)
    if "merge_method" in fields:
        return "recipes", str(entry.path)
    if "dataset_path" in fields or "output_type" in fields:
        return "fitness", str(entry.path)
    if fields & {"kind", "method"} and "fitness" not in fields:
        return "search_spaces", str(entry.path)
    return "experiments", str(entry.path)
