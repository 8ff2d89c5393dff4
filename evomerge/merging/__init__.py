"""Recipe × parents → weights: merge methods, the in-place engine of a search, the streaming engine."""

from evomerge.merging.checks import check_recipe
from evomerge.merging.in_place import InPlaceMerger
from evomerge.merging.method import METHODS, MergeMethod, Parameter, merge_method
from evomerge.merging.parents import Parents
from evomerge.merging.tensors import merge_tensors
from evomerge.merging.to_folder import merge_to_folder

__all__ = [
    "METHODS",
    "InPlaceMerger",
    "MergeMethod",
    "Parameter",
    "Parents",
    "check_recipe",
    "merge_method",
    "merge_tensors",
    "merge_to_folder",
]
