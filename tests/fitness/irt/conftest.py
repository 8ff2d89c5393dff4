"""Responses that real models gave to real items, with fits by mirt: not ours to ship, so tests skip without them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from evomerge.fitness.irt.bank import ItemParameters
from evomerge.fitness.irt.response_files import read_responses
from evomerge.fitness.irt.responses import ResponseMatrix

FOLDER = Path(os.environ.get("EVOMERGE_METABENCH") or Path(__file__).parents[4] / "shared" / "data" / "metabench")


@dataclass(frozen=True)
class Reference:
    """A file of metabench and what mirt made of it."""

    matrix: ResponseMatrix
    parameters: ItemParameters
    log_likelihood: float
    abilities: np.ndarray  # (models,)


@pytest.fixture(scope="session")
def metabench():
    """Return a function from a benchmark's name to its responses and the published fit."""
    if not FOLDER.is_dir():
        pytest.skip("needs metabench's responses; EVOMERGE_METABENCH is the folder that holds gsm8k_A.npz and others")

    def read(name: str) -> Reference:
        path = FOLDER / f"{name}_A.npz"
        with np.load(path) as file:
            slopes, intercepts, lower, upper = file["mirt_a_d_g_u"].T
            abilities = file["theta_and_se"][:, 0]
        statistics = json.loads((FOLDER / "meta.json").read_text())[f"{name}_A"]
        parameters = ItemParameters(slopes[:, None], intercepts, lower, upper)
        return Reference(read_responses(path), parameters, statistics["mirt_logLik"], abilities)

    return read
