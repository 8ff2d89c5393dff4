"""Which tensors a model folder holds, read from the safetensors headers alone."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # bytes; the format's own limit
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_AGAIN = "copy or download the folder again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor on disk. ``start`` and ``stop`` are byte positions in ``file``."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    start: int
    stop: int


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Return every tensor of the model in ``folder``, sorted by name; no weights are read.

    Raises:
        CheckpointError: no safetensors, a missing shard, a damaged or truncated file; names the file and the
            way out.
    """
    index = folder / INDEX
    if index.is_file():
        return _read_shards(folder, index)
    files = _unindexed(folder)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        tensors |= read_header(file)
    return dict(sorted(tensors.items()))


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors of one safetensors file.

    Raises:
        CheckpointError: the file cannot be read, is damaged or shorter than its header says, or its tensors
            overlap.
    """
    return read_tensors_and_metadata(file)[0]


def read_tensors_and_metadata(file: Path) -> tuple[dict[str, TensorInfo], Mapping[str, Any]]:
    """Return the tensors of one safetensors file, and what else its header says; see `read_header`."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
            if length is None or length > min(size - 8, MAX_HEADER):
                raise CheckpointError(f"{file}: truncated, or no safetensors file ({size} bytes); {_AGAIN}")
            header = json.loads(stream.read(length), object_pairs_hook=_unique)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}); check the path and its rights") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: its safetensors header is damaged ({error}); {_AGAIN}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its safetensors header is damaged (a {type(header).__name__}); {_AGAIN}")
    metadata = header.pop("__metadata__", None)
    tensors = {name: _info(name, entry, file, 8 + length) for name, entry in header.items()}
    needed = max((info.stop for info in tensors.values()), default=0)
    if needed > size:
        raise CheckpointError(f"{file}: truncated: its header speaks of {needed} bytes, it has {size}; {_AGAIN}")
    _refuse_overlaps(file, tensors.values())
    return tensors, metadata if isinstance(metadata, Mapping) else {}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object; a key given twice would hide one of its tensors."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _info(name: str, entry: Any, file: Path, data: int) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the header's entry of tensor {name!r} is damaged; {_AGAIN}") from error
    if dtype not in DTYPES:
        raise CheckpointError(f"{file}: tensor {name!r} is stored as {dtype}; readable are {', '.join(DTYPES)}")
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise CheckpointError(f"{file}: tensor {name!r} has an impossible shape or offset ({entry}); {_AGAIN}")
    expected = DTYPES[dtype].itemsize * math.prod(shape)
    if stop - start != expected:
        raise CheckpointError(f"{file}: tensor {name!r} has {stop - start} bytes, expected {expected}; {_AGAIN}")
    return TensorInfo(name, shape, DTYPES[dtype], file, data + start, data + stop)


def _refuse_overlaps(file: Path, infos: Iterable[TensorInfo]) -> None:
    filled = sorted((info for info in infos if info.stop > info.start), key=lambda info: info.start)
    for first, second in pairwise(filled):
        if second.start < first.stop:
            raise CheckpointError(f"{file}: tensors {first.name!r} and {second.name!r} overlap; {_AGAIN}")


def read_index(index: Path) -> dict[str, str]:
    """Return tensor name → file name, as an index of shards says; every file is there.

    Raises:
        CheckpointError: the index cannot be read, names a file elsewhere, or a shard is missing.
    """
    try:
        where = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        shards = sorted(set(where.values()))
        foreign = [shard for shard in shards if Path(shard).name != shard]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: unreadable index ({type(error).__name__}: {error}); {_AGAIN}") from error
    if foreign:
        raise CheckpointError(f"{index}: shard {foreign[0]!r} lies outside the folder; shards are plain file names")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise CheckpointError(f"{index.parent}: {len(missing)} of {len(shards)} shards missing: {listed}; {_AGAIN}")
    return where


def _read_shards(folder: Path, index: Path) -> dict[str, TensorInfo]:
    where = read_index(index)
    found: Mapping[str, Mapping[str, TensorInfo]] = {
        shard: read_header(folder / shard) for shard in sorted(set(where.values()))
    }
    tensors: dict[str, TensorInfo] = {}
    for name, shard in sorted(where.items()):
        if name not in found[shard]:
            raise CheckpointError(f"{folder / shard}: lacks tensor {name!r}, which {INDEX} promises; {_AGAIN}")
        tensors[name] = found[shard][name]
    return tensors


def _unindexed(folder: Path) -> list[Path]:
    """Return the only safetensors file of a folder without index, or say why there is none."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder}: a LoRA adapter, not a whole model; name it as BASE+{folder}")
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise CheckpointError(f"{folder}: {len(files)} safetensors files but no {INDEX}; {_AGAIN}")
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        raise CheckpointError(
            f"{folder}: only pickled weights ({pickled[0]}), which can run code when read; convert them once "
            f"with transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), or allow "
            f"this model by its name in the recipe: --allow-pickle MODEL"
        )
    raise CheckpointError(f"{folder}: no *.safetensors file; a parent is a folder that holds its weights in one")
