"""Which tensors a model folder holds, read from the safetensors headers alone."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
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
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
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
        CheckpointError: the file cannot be read, is damaged or shorter than its header says.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
            if length is None or length > min(size - 8, MAX_HEADER):
                raise CheckpointError(f"{file}: truncated, or no safetensors file ({size} bytes); {_AGAIN}")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}); check the path and its rights") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: its safetensors header is damaged ({error}); {_AGAIN}") from error
    header.pop("__metadata__", None)
    tensors = {name: _info(name, entry, file, 8 + length) for name, entry in header.items()}
    needed = max((info.stop for info in tensors.values()), default=0)
    if needed > size:
        raise CheckpointError(f"{file}: truncated: its header speaks of {needed} bytes, it has {size}; {_AGAIN}")
    return tensors


def _info(name: str, entry: dict[str, Any], file: Path, data: int) -> TensorInfo:
    if entry["dtype"] not in DTYPES:
        known = ", ".join(DTYPES)
        raise CheckpointError(f"{file}: tensor {name!r} is stored as {entry['dtype']}; readable are {known}")
    start, stop = entry["data_offsets"]
    info = TensorInfo(name, tuple(entry["shape"]), DTYPES[entry["dtype"]], file, data + start, data + stop)
    expected = info.dtype.itemsize * torch.Size(info.shape).numel()
    if start < 0 or stop - start != expected:
        raise CheckpointError(f"{file}: tensor {name!r} has {stop - start} bytes, expected {expected}; {_AGAIN}")
    return info


def _read_shards(folder: Path, index: Path) -> dict[str, TensorInfo]:
    try:
        where = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: unreadable index ({type(error).__name__}: {error}); {_AGAIN}") from error
    shards = sorted(set(where.values()))
    foreign = [shard for shard in shards if Path(shard).name != shard]
    if foreign:
        raise CheckpointError(f"{index}: shard {foreign[0]!r} lies outside the folder; shards are plain file names")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise CheckpointError(f"{folder}: {len(missing)} of {len(shards)} shards missing: {listed}; {_AGAIN}")
    found = {shard: read_header(folder / shard) for shard in shards}
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
        raise CheckpointError(f"{folder}: a LoRA adapter, not a whole model; merge it into its base and save that")
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise CheckpointError(f"{folder}: {len(files)} safetensors files but no {INDEX}; {_AGAIN}")
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        raise CheckpointError(
            f"{folder}: only pickled weights ({pickled[0]}), which can run code when read; convert them once "
            f"with transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise CheckpointError(f"{folder}: no *.safetensors file; a parent is a folder that transformers can load")
