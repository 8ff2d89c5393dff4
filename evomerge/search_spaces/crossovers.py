"""How children are made of two sources: the table of crossovers, and that of mutations.

A crossover turns two model references and the numbers of its genes into a recipe of an ordinary merge method; a
mutation changes the fields of that recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from evomerge.registry import Registry
from evomerge.search_spaces.genes import FloatGene, Gene, Genome, IntGene

Fields: TypeAlias = Mapping[str, Any]
Method: TypeAlias = Literal["linear", "task_arithmetic", "cycle_qd"]


@dataclass(frozen=True)
class Crossover:
    """A way to make a child of two sources.

    Attributes:
        summary: in one line.
        genes: its own, besides the sources. Their initial values are those of a seed member, whose two sources are
            the same parent, and must then give that parent as it is.
        fields: (first, second, genome, base) to the recipe's fields besides ``dtype``. The sources are references, and
            may be equal (a recipe cannot list a model twice; see `alone`); the base is None if the experiment has none.
        needs_base: whether it takes task vectors from the experiment's base.
        between: t to the genes of the child of (1 - t) times the first source's task vector and t times the second's;
            None where no genes make such children.
    """

    summary: str
    genes: tuple[Gene, ...]
    fields: Callable[[str, str, Genome, str | None], Fields]
    needs_base: bool = False
    between: Callable[[float], Genome] | None = None


@dataclass(frozen=True)
class Mutation:
    """A change of a child.

    Attributes:
        summary: in one line.
        genes: its own, named ``mutation.…``; their initial values change nothing.
        fields: (the crossover's fields, genome, base) to the fields of the mutated child.
        crossovers: those whose fields it can change; None: any.
    """

    summary: str
    genes: tuple[Gene, ...]
    fields: Callable[[Fields, Genome, str | None], Fields]
    crossovers: tuple[str, ...] | None = None


CROSSOVERS: Registry[Crossover] = Registry("crossover")
MUTATIONS: Registry[Mutation] = Registry("mutation")


def alone(reference: str) -> Fields:
    """Return the fields of a recipe that is one model as it is."""
    return {"merge_method": "passthrough", "models": [{"model": reference}]}


def _slerp(first: str, second: str, genome: Genome, base: str | None) -> Fields:
    if first == second:
        return alone(first)
    return {
        "merge_method": "slerp",
        "base_model": first,
        "models": [{"model": first}, {"model": second}],
        "parameters": {"t": genome["weight"]},
    }


def _weighted(method: Method, first: str, second: str, genome: Genome) -> dict[str, Any]:
    weights = (float(genome["first.weight"]), float(genome["second.weight"]))
    if first == second:
        models = [{"model": first, "parameters": {"weight": sum(weights)}}]
    else:
        models = [
            {"model": model, "parameters": {"weight": weight}}
            for model, weight in zip((first, second), weights, strict=True)
        ]
    return {"merge_method": method, "models": models}


def _linear(first: str, second: str, genome: Genome, base: str | None) -> Fields:
    return {**_weighted("linear", first, second, genome), "parameters": {"normalize": False}}


def _task_arithmetic(first: str, second: str, genome: Genome, base: str | None) -> Fields:
    return {**_weighted("task_arithmetic", first, second, genome), "base_model": base}


def _m2n2(first: str, second: str, genome: Genome, base: str | None) -> Fields:
    if first == second:
        return alone(first)
    numbers = {"t": genome["weight"], "split": genome["split"]}
    return {"merge_method": "m2n2", "models": [{"model": first}, {"model": second}], "parameters": numbers}


def _cycle_qd(first: str, second: str, genome: Genome, base: str | None) -> Fields:
    if first == second:
        return alone(first)
    return {**_weighted("cycle_qd", first, second, genome), "base_model": base, "parameters": {}}


def _with_noise(fields: Fields, genome: Genome, base: str | None) -> Fields:
    of_one = {"merge_method": "m2n2", "models": fields["models"], "parameters": {"t": 0.0}}
    return _mutated(fields, genome, "noise", of_one)


def _with_shaken_singular_values(fields: Fields, genome: Genome, base: str | None) -> Fields:
    of_one = {
        "merge_method": "cycle_qd",
        "base_model": base,
        "models": fields["models"],
        "parameters": {"weight": 1.0},
    }
    return _mutated(fields, genome, "svd", of_one)


def _mutated(fields: Fields, genome: Genome, parameter: str, of_one: Fields) -> Fields:
    """Return the fields with one more parameter and the seed; ``of_one`` stands for a single model as it is."""
    if not genome["mutation.scale"]:
        return fields
    fields = of_one if len(fields["models"]) == 1 else fields
    numbers = {**fields["parameters"], parameter: genome["mutation.scale"]}
    return {**fields, "parameters": numbers, "seed": genome[MUTATION_SEED]}


def _shared(t: float) -> Genome:
    return {"first.weight": 1 - t, "second.weight": t}


WEIGHTS = (FloatGene("first.weight", 0.0, 1.0, 0.5), FloatGene("second.weight", 0.0, 1.0, 0.5))
NEAR_ONE = (FloatGene("first.weight", 0.0, 2.0, 1.0), FloatGene("second.weight", 0.0, 2.0, 1.0))
MUTATION_SEED = "mutation.seed"
SHAKEN = (FloatGene("mutation.scale", 0.0, 1.0, 0.0), IntGene(MUTATION_SEED, 0, 2**31 - 1, 0))

CROSSOVERS.add(
    "slerp",
    Crossover(
        "on the arc between the sources, tensor by tensor",
        (FloatGene("weight", 0.0, 1.0, 0.5),),
        _slerp,
        between=lambda t: {"weight": t},  # but for the angle between the sources, which is small
    ),
    origin=__name__,
)
CROSSOVERS.add("linear", Crossover("a weighted sum of the sources", WEIGHTS, _linear, between=_shared), origin=__name__)
CROSSOVERS.add(
    "task_arithmetic",
    Crossover(
        "the base and a weighted sum of the sources' task vectors",
        WEIGHTS,
        _task_arithmetic,
        needs_base=True,
        between=_shared,
    ),
    origin=__name__,
)
CROSSOVERS.add(
    "m2n2",
    Crossover(
        "on the arc between the sources as wholes, their shares swapped at a split point",
        (FloatGene("weight", 0.0, 1.0, 0.5), FloatGene("split", 0.0, 1.0, 1.0)),
        _m2n2,
    ),
    origin=__name__,
)
CROSSOVERS.add(
    "cycle-qd",
    Crossover("the base and the weighted mean of the sources' task vectors", NEAR_ONE, _cycle_qd, needs_base=True),
    origin=__name__,
)
MUTATIONS.add(
    "gaussian",
    Mutation("normal noise on every number", SHAKEN, _with_noise, ("m2n2", "cycle-qd")),
    origin=__name__,
)
MUTATIONS.add(
    "svd",
    Mutation("singular values of task vectors grow at random", SHAKEN, _with_shaken_singular_values, ("cycle-qd",)),
    origin=__name__,
)
