"""pycma, imported without its word about matplotlib: it could plot, and we do not ask it to."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Could not import matplotlib")
    import cma
    from cma.sigma_adaptation import CMAAdaptSigmaCSA

__all__ = ["CMAAdaptSigmaCSA", "cma"]
