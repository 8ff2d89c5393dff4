"""Parents on disk: finding, reading and comparing them, and writing new ones."""

from evomerge.checkpoints.adapters import AdapterView
from evomerge.checkpoints.checkpoint import Checkpoint, all_finite
from evomerge.checkpoints.factors import Factors, StoredFactors
from evomerge.checkpoints.headers import TensorInfo
from evomerge.checkpoints.naming import one_naming
from evomerge.checkpoints.opening import open_checkpoint
from evomerge.checkpoints.resolve import ZOO_VERSION, cache_folder, resolve, zoo_folder
from evomerge.checkpoints.tied import tied_tensors, untied_config
from evomerge.checkpoints.tokenizers import (
    TokenizerComparison,
    compare_tokenizers,
    copy_generation_config,
    copy_processors,
    copy_tokenizer,
    vocab_size,
    vocabulary,
)
from evomerge.checkpoints.view import CheckpointView, FiniteView
from evomerge.checkpoints.writer import CheckpointWriter, TensorSpec, parse_size
from evomerge.recipes import layer_of

__all__ = [
    "ZOO_VERSION",
    "AdapterView",
    "Checkpoint",
    "CheckpointView",
    "CheckpointWriter",
    "Factors",
    "FiniteView",
    "StoredFactors",
    "TensorInfo",
    "TensorSpec",
    "TokenizerComparison",
    "all_finite",
    "cache_folder",
    "compare_tokenizers",
    "copy_generation_config",
    "copy_processors",
    "copy_tokenizer",
    "layer_of",
    "one_naming",
    "open_checkpoint",
    "parse_size",
    "resolve",
    "tied_tensors",
    "untied_config",
    "vocab_size",
    "vocabulary",
    "zoo_folder",
]
