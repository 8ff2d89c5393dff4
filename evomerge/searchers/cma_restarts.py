"""When CMA-ES stops, with which population and step size it starts again.

IPOP: Auger and Hansen 2005, *A restart CMA evolution strategy with increasing population size*.
BIPOP: Hansen 2009, *Benchmarking a BI-population CMA-ES on the BBOB-2009 function testbed*.

A schedule is a generator of launches; it is sent the number of evaluations that the launch took before it
stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Launch:
    """One start of CMA-ES: population size λ, factor on the first step size, evaluations until it ends."""

    population: int
    sigma_factor: float = 1.0
    evaluations: float = math.inf


Schedule = Generator[Launch, int, None]


def single(population: int, generator: np.random.Generator) -> Schedule:
    """One launch, no restart."""
    yield Launch(population)


def ipop(population: int, generator: np.random.Generator) -> Schedule:
    """Each restart doubles the population (Auger and Hansen 2005, Section 2.2)."""
    while True:
        yield Launch(population)
        population *= 2


def bipop(population: int, generator: np.random.Generator) -> Schedule:
    """Restarts alternate between doubled large populations and small local ones, by evaluations spent so far.

    Hansen 2009, Section 2. As in pycma, the first launch counts as a small one.
    """
    spent_small = yield Launch(population)
    spent_large, last_large, growth = 0, 0, 1
    while True:
        if spent_large <= spent_small:
            growth *= 2
            last_large = yield Launch(population * growth)
            spent_large += last_large
        else:
            first, second = generator.random(2)
            size = int(population * (growth / 2) ** (first**2))  # λ_s = ⌊λ_def (½ λ_l / λ_def)^(U[0,1]²)⌋
            sigma_factor = 10 ** (-2 * second)  # σ_s = σ⁰ · 10^(−2 U[0,1])
            spent_small += yield Launch(size, sigma_factor, last_large / 2)


SCHEDULES: dict[str, Callable[[int, np.random.Generator], Schedule]] = {
    "none": single,
    "ipop": ipop,
    "bipop": bipop,
}
