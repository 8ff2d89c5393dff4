"""Published landscapes of merged models: not ours to ship, so tests skip without them."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("EVOMERGE_LANDSCAPES") or Path(__file__).parents[4] / "shared" / "data")


@pytest.fixture(scope="session")
def published():
    """Return the folder that holds ``fusion_bench_tables`` and ``landscape``."""
    if not all((FOLDER / name).is_dir() for name in ("fusion_bench_tables", "landscape")):
        pytest.skip(
            "needs published landscapes; EVOMERGE_LANDSCAPES is the folder of fusion_bench_tables and landscape"
        )
    return FOLDER
