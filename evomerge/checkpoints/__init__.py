"""Parents on disk: finding, reading and comparing them, and writing new ones."""

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import TensorInfo
from evomerge.checkpoints.resolve import ZOO_VERSION, cache_folder, resolve, zoo_folder
from evomerge.checkpoints.tied import tied_tensors
from evomerge.checkpoints.tokenizers import (
    TokenizerComparison,
    compare_tokenizers,
    copy_generation_config,
    copy_tokenizer,
    vocab_size,
    vocabulary,
)
from evomerge.checkpoints.writer import CheckpointWriter, TensorSpec, parse_size
from evomerge.recipes import layer_of

__all__ = [
    "ZOO_VERSION",
    "Checkpoint",
    "CheckpointWriter",
    "TensorInfo",
    "TensorSpec",
    "TokenizerComparison",
    "cache_folder",
    "compare_tokenizers",
    "copy_generation_config",
    "copy_tokenizer",
    "layer_of",
    "parse_size",
    "resolve",
    "tied_tensors",
    "vocab_size",
    "vocabulary",
    "zoo_folder",
]
