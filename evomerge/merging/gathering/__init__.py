"""Gathering statistics of models on calibration data, for the methods that need them."""

from evomerge.merging.gathering.examples import Example, answered, blocks, masked
from evomerge.merging.gathering.gather import Gathered, gather
from evomerge.merging.gathering.write import Calibration, write_statistics

__all__ = ["Calibration", "Example", "Gathered", "answered", "blocks", "gather", "masked", "write_statistics"]
