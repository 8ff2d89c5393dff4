"""Genes: the numbers and choices that a search varies, each with its bounds and a readable name.

A genome is a plain ``dict`` from gene name to value, in the order of the search space's genes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

Value: TypeAlias = float | int | str
Genome: TypeAlias = Mapping[str, Value]


@dataclass(frozen=True)
class FloatGene:
    """A real number in [low, high]; ``initial`` is where a local search starts."""

    name: str
    low: float
    high: float
    initial: float


@dataclass(frozen=True)
class IntGene:
    """An integer in [low, high], both ends included."""

    name: str
    low: int
    high: int
    initial: int


@dataclass(frozen=True)
class ChoiceGene:
    """One of several named choices, without order."""

    name: str
    choices: tuple[str, ...]
    initial: str


Gene: TypeAlias = FloatGene | IntGene | ChoiceGene
