"""One parent on disk: its config and its tensors, memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch

from evomerge.checkpoints.factors import StoredFactors
from evomerge.checkpoints.headers import TensorInfo, read_headers
from evomerge.checkpoints.links import refuse_links_out
from evomerge.checkpoints.mapping import MappedFiles
from evomerge.checkpoints.pickled import PickledFiles, pickled_files
from evomerge.errors import CheckpointError
from evomerge.recipes import count_layers

SAMPLES = 16  # places of a file that the fingerprint reads
SAMPLE_BYTES = 4096
_PART = 1 << 24  # elements that are widened at once


class Digest(Protocol):
    """A digest of hashlib."""

    def update(self, data: bytes, /) -> None: ...


class Checkpoint:
    """A model folder, opened by reading headers only.

    Tensors are views of the memory-mapped files: the pages belong to the page cache, which all processes
    share, and are read when touched. The mapping is private: writing to a view changes neither the file nor
    other processes.

    Args:
        folder: a folder with safetensors, sharded or not, and the ``config.json`` of a model of transformers; without
            one it holds plain tensors.
        name: what messages call it; the folder by default.
        allow_pickle: read pickled weights where there are no safetensors. PyTorch's restricted unpickler is used,
            which makes tensors and nothing else.

    Raises:
        CheckpointError: the folder holds no readable model; names the file and the way out.
    """

    untied: frozenset[str] = frozenset()  # names that have a tensor of their own, though the config ties them
    transient = False  # opened for one merge, so that nothing of it is worth keeping for the next

    def __init__(self, folder: Path, name: str | None = None, *, allow_pickle: bool = False) -> None:
        self.folder = Path(folder)
        self.name = name or str(folder)
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.name}: no such folder: {self.folder}")
        refuse_links_out(self.folder)
        self.config: dict[str, Any] = _read_config(self.folder)
        self._files: MappedFiles | PickledFiles = MappedFiles()
        if allow_pickle and not any(self.folder.glob("*.safetensors")) and (files := pickled_files(self.folder)):
            self._files = PickledFiles(files)
            self.tensors: Mapping[str, TensorInfo] = MappingProxyType(self._files.tensors)
        else:
            self.tensors = MappingProxyType(read_headers(self.folder))
        self._views: dict[str, torch.Tensor] = {}

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r}, {len(self.tensors)} tensors, {self.num_bytes / 1e9:.3f} GB)"

    def tensor(self, name: str) -> torch.Tensor:
        """Return tensor ``name`` as a view of the mapped file, in the file's dtype.

        Raises:
            CheckpointError: there is no such tensor, or its file is gone.
        """
        if name not in self._views:
            if name not in self.tensors:
                raise CheckpointError(f"{self.name}: has no tensor {name!r}")
            self._views[name] = self._files.tensor(self.tensors[name])
        return self._views[name]

    @cached_property
    def is_plain(self) -> bool:
        """Whether these are tensors alone: there is no config, or one that names no architecture of transformers."""
        return names_no_architecture(self.config)

    def factors(self, name: str) -> StoredFactors | None:
        """Return tensor ``name``'s change from its base as an adapter stores it; None where it is no such change."""
        return None

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder that the weights come from; an adapted model has two."""
        return (self.folder,)

    def release(self) -> None:
        """Forget what is mapped into memory; tensors handed out stay valid, others are mapped anew when asked for."""
        self._files.release()
        self._views.clear()

    @property
    def num_layers(self) -> int:
        """Number of layers that the tensors' names speak of."""
        return count_layers(self.tensors)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.stop - info.start for info in self.tensors.values())

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the config, a header, a file's size or sampled weights."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        digest_files(digest, self.tensors.values())
        return digest.hexdigest()[:16]

    def check_finite(self) -> list[str]:
        """Return the names of the tensors that hold a NaN or an infinity; reads every weight once."""
        return [name for name in self.tensors if not all_finite(self.tensor(name))]


def names_no_architecture(config: Mapping[str, Any]) -> bool:
    """Whether a config.json (empty if there is none) names nothing that transformers or a model's own code builds."""
    if config.get("architectures") or config.get("auto_map"):
        return False
    kind = config.get("model_type")
    if kind is None:
        return True
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return kind not in CONFIG_MAPPING_NAMES


def digest_files(digest: Digest, infos: Collection[TensorInfo]) -> None:
    """Add the headers, sizes and some samples of the files that hold these tensors to a digest."""
    for info in infos:
        digest.update(f"{info.name} {info.shape} {info.dtype} {info.file.name} {info.start}\n".encode())
    for file in sorted({info.file for info in infos}):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for sample in range(SAMPLES):
                stream.seek(sample * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES))


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor of any shape and dtype holds neither NaN nor infinity."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.dtype.itemsize == 1:
        return all(all_finite(part.float()) for part in tensor.flatten().split(_PART))
    low, high = torch.aminmax(tensor)  # a NaN anywhere makes both NaN; twenty times faster than isfinite
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / "adapter_config.json").is_file():
            hint = f"a LoRA adapter; name it as BASE+{folder}"
            raise CheckpointError(f"{folder}: config.json is missing; {hint}") from None
        if any(folder.glob("tokenizer*")):
            hint = "a language model's folder has one; copy or download it again"
            raise CheckpointError(f"{folder}: config.json is missing; {hint}") from None
        return {}  # plain tensors
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}); copy or download it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found a {type(config).__name__}")
    return config
