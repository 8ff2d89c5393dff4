"""Fronts as arrays: who dominates whom, and how good a set of trade-offs is.

Rows are trials, columns objectives; all numbers are *gains*, larger is better. No module here knows about trials.
"""

from evomerge.fronts.archive import Change, FrontArchive
from evomerge.fronts.dominance import nondominated, ranks
from evomerge.fronts.hypervolume import hypervolume
from evomerge.fronts.meter import FrontMeter
from evomerge.fronts.quality import Quality, igd_plus, spread

__all__ = [
    "Change",
    "FrontArchive",
    "FrontMeter",
    "Quality",
    "hypervolume",
    "igd_plus",
    "nondominated",
    "ranks",
    "spread",
]
