"""``bounds`` and ``fixed``: which genes a name or pattern in a file means, and what it does to them.

A pattern is a parameter's name (``density``), the first words of genes' names (``math.weight``), or has ``*``
and ``?`` in it (``*.weight.layer0.*``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.search_spaces.genes import FloatGene, Gene, Value

if TYPE_CHECKING:
    from evomerge.merging.method import Parameter


class GeneTable:
    """All genes that a method has on some parents, before a file's ``bounds`` and ``fixed`` are applied.

    Args:
        genes: gene → the parameter it sets.
        parameters: all parameters of the method, searched or not.
    """

    def __init__(self, genes: Mapping[Gene, Parameter], parameters: Sequence[Parameter]) -> None:
        self._genes = {gene.name: gene for gene in genes}
        self._owner = {gene.name: parameter for gene, parameter in genes.items()}
        self._parameters = [parameter.name for parameter in parameters]

    def apply(
        self, bounds: Mapping[str, tuple[float, float]], fixed: Mapping[str, float | bool]
    ) -> tuple[tuple[Gene, ...], dict[str, Value]]:
        """Return the genes to search, and the values of those that are fixed.

        Where several bounds match a gene, the last one counts.

        Raises:
            ConfigError: a pattern matches nothing, bounds leave the parameter's range, or no gene is left.
        """
        problems = [*self._check("bounds", bounds), *self._check("fixed", fixed)]
        for pattern, (low, high) in bounds.items():
            for name in self._matching(pattern):
                gene = self._genes[name]
                if isinstance(gene, FloatGene):
                    problems += self._outside(name, pattern, low, high)
                    self._genes[name] = replace(gene, low=low, high=high)
        constants: dict[str, Value] = {}
        for pattern, value in fixed.items():
            constants |= {name: _as_value(value) for name in self._matching(pattern)}
        genes = tuple(_inside(gene) for name, gene in self._genes.items() if name not in constants)
        if not genes and not problems:
            where_to_go = "choose a method with searchable parameters, or fix fewer of them"
            problems.append(Problem("there is no gene left to search", "search_space", where_to_go))
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        return genes, constants

    def _matching(self, pattern: str) -> list[str]:
        if pattern in self._parameters:
            return [name for name, parameter in self._owner.items() if parameter.name == pattern]
        return [name for name in self._genes if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]

    def _check(self, field: str, patterns: Mapping[str, object]) -> Iterator[Problem]:
        for pattern in patterns:
            known = self._matching(pattern) or (field == "fixed" and pattern in self._parameters)
            if not known:
                near = suggest(pattern, [*self._genes, *self._parameters])
                if near.startswith("valid"):
                    first = next(iter(self._genes), "none")
                    near = f"parameters: {', '.join(self._parameters)}; genes are named like {first!r}"
                what = f"{pattern!r} is no parameter and no gene that is searched"
                yield Problem(what, f"search_space.{field}", near)

    def _outside(self, name: str, pattern: str, low: float, high: float) -> Iterator[Problem]:
        parameter = self._owner[name]
        smallest = low if parameter.minimum is None else parameter.minimum
        largest = high if parameter.maximum is None else parameter.maximum
        if low < smallest or high > largest:
            yield Problem(
                f"{parameter.name} has no meaning outside [{smallest:g}, {largest:g}]",
                f"search_space.bounds.{pattern}",
                f"found [{low:g}, {high:g}]",
            )


def _inside(gene: Gene) -> Gene:
    """Move a gene's initial value into its bounds."""
    if not isinstance(gene, FloatGene):
        return gene
    return replace(gene, initial=min(max(gene.initial, gene.low), gene.high))


def _as_value(value: float | bool) -> Value:
    return str(value).lower() if isinstance(value, bool) else float(value)
