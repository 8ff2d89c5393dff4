"""LoRA adapters as models: the base's tensors, with the adapter's change added as they are read.

The folder is one that PEFT writes: ``adapter_config.json`` and ``adapter_model.safetensors``. Nothing is written to
disk, and in memory there is one changed tensor at a time (`evomerge.checkpoints.adapter_changes` has the formulae).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from evomerge.checkpoints.adapter_changes import AddedBias, Change, LowRank, NewRows, Replaced
from evomerge.checkpoints.checkpoint import Checkpoint, all_finite, digest_files
from evomerge.checkpoints.factors import Factors, StoredFactors
from evomerge.checkpoints.headers import TensorInfo, read_header
from evomerge.checkpoints.links import refuse_links_out
from evomerge.checkpoints.mapping import MappedFiles
from evomerge.checkpoints.module_names import ModuleNames
from evomerge.checkpoints.pickled import PickledFiles
from evomerge.checkpoints.tied import tied_tensors, untied_config
from evomerge.checkpoints.view import CheckpointView
from evomerge.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
PICKLED_ADAPTER = "adapter_model.bin"
_PREFIX = "base_model.model."
_LOW_RANK = re.compile(r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.(?P<leaf>\w+))?")
_WAY_OUT = "merge it into its base with PEFT and save that"
_TOKENS = ".token_adapter.trainable_tokens_delta"
# Variants whose weights are not W + s·B·A of the stored base, by the field of adapter_config.json that asks for them.
_VARIANTS = {
    "alora_invocation_tokens": "is active for some tokens only (aLoRA)",
    "arrow_config": "is routed between tokens (Arrow)",
    "kasa_config": "changes the base weights (KaSA)",
    "layer_replication": "repeats layers of the base",
    "monteclora_config": "is random (MonteCLoRA)",
    "use_bdlora": "is block-diagonal (BD-LoRA)",
    "use_qalora": "is grouped for quantised bases (QA-LoRA)",
}
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")  # ways to begin that also change the base


class AdapterView(CheckpointView):
    """A base with a LoRA adapter: every tensor is that of the adapted model.

    A tensor that the base shares between two names, such as embedding and head, and that the adapter changes under one
    of them only, is unshared, because the adapted model computes with both.

    Args:
        source: the base, which may itself be a view.
        folder: of the adapter.
        name: what messages call the adapted model.
        allow_pickle: read a pickled adapter where there are no safetensors.

    Raises:
        CheckpointError: the folder holds no LoRA adapter that can be added to a weight, it does not fit this base, or
            cannot be read; names what and where.
    """

    def __init__(
        self, source: Checkpoint, folder: Path, name: str | None = None, *, allow_pickle: bool = False
    ) -> None:
        super().__init__(source, name or f"{source.name}+{folder}")
        self.adapter_folder = Path(folder)
        refuse_links_out(self.adapter_folder)
        self.adapter_config = read_adapter_config(self.adapter_folder)
        self._files, self._stored = _open(self.adapter_folder, allow_pickle)
        self._changes = self._read_changes()
        self._sources: dict[str, str] = {}  # of tensors that the base has under another name
        self._untie()
        self._check_shapes()

    @property
    def folders(self) -> tuple[Path, ...]:
        """The base's folders and the adapter's."""
        return (*self.source.folders, self.adapter_folder)

    def tensor(self, name: str) -> torch.Tensor:
        """Return tensor ``name`` of the adapted model, in the base's dtype.

        Raises:
            CheckpointError: there is no such tensor, its file is gone, or the adapter's part of it holds NaN or Inf.
        """
        tensor = self.source.tensor(self._sources.get(name, name))
        changes = self._changes.get(name, ())
        for change in changes:
            tensor = change.apply(tensor, self._read)
        if changes:
            self.source.release()  # memory holds the changed tensor, not the base's beside it
        return tensor

    def factors(self, name: str) -> StoredFactors | None:
        """Return A and B where the adapter adds their product to tensor ``name`` of a plain base and does no more.

        Of a tensor that it leaves alone their rank is 0.
        """
        changes = self._changes.get(name, ())
        if len(changes) > 1 or type(self.source) is not Checkpoint:
            return None
        start = self.source.tensors[self._base_name(name)]
        if not changes:
            return StoredFactors(0, start, lambda: _no_change(start.shape))
        change = changes[0]
        if not isinstance(change, LowRank) or change.magnitude is not None:
            return None
        low_rank = change
        return StoredFactors(
            change.first.shape[0], start, lambda: Factors(*low_rank.pair(self._read), low_rank.transposed)
        )

    def release(self) -> None:
        """Forget what is mapped into memory; tensors handed out stay valid."""
        self.source.release()
        self._files.release()

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the base's fingerprint, the adapter's config or its weights."""
        config = json.dumps(self.adapter_config, sort_keys=True)
        digest = hashlib.sha256(f"{self.source.fingerprint} {config}".encode())
        digest_files(digest, self._stored.values())
        return digest.hexdigest()[:16]

    def _read(self, info: TensorInfo) -> torch.Tensor:
        tensor = self._files.tensor(info)
        if not all_finite(tensor):
            raise CheckpointError(f"{info.file}: tensor {info.name} holds NaN or Inf; use another copy of this adapter")
        return tensor

    def _read_changes(self) -> dict[str, list[Change]]:
        """Return the base's tensor → what the adapter does to it, in that order."""
        names = ModuleNames(self.source)
        replaced: dict[str, list[Change]] = {}
        added: dict[str, list[Change]] = {}
        parts: dict[str, dict[str, TensorInfo]] = {}
        for key, info in self._stored.items():
            name = key.removeprefix(_PREFIX)
            if match := _LOW_RANK.fullmatch(name):
                part = match["part"] + (".bias" if match["leaf"] == "bias" else "")
                of_module = parts.setdefault(_bare(match["module"]), {})
                if part in of_module:  # wrapped twice: one product for each of several parameters
                    raise CheckpointError(self._no_weight(key))
                of_module[part] = info
            elif name.endswith(_TOKENS):
                module = _bare(name.removesuffix(_TOKENS))
                target = self._target(names, f"{module}.weight", key)
                replaced.setdefault(target, []).append(NewRows(info, self._rows(module)))
            else:
                replaced.setdefault(self._target(names, _bare(name), key), []).append(Replaced(info))
        for module, stored in parts.items():
            key = next(iter(stored.values())).name
            weight = self._target(names, f"{module}.weight", key)
            added.setdefault(weight, []).append(self._low_rank(names, module, weight, stored))
            if "lora_B.bias" in stored:
                bias = self._target(names, f"{module}.bias", stored["lora_B.bias"].name)
                added.setdefault(bias, []).append(AddedBias(stored["lora_B.bias"], self._scale(module, stored)))
        if not replaced and not added:
            raise CheckpointError(f"{self.adapter_folder}: an adapter without any tensor; train or download it again")
        return {name: replaced.get(name, []) + added.get(name, []) for name in replaced | added}

    def _target(self, names: ModuleNames, wanted: str, key: str) -> str:
        found = names.stored(wanted)
        if found is None and self.adapter_config.get("target_parameters"):
            raise CheckpointError(self._no_weight(key))
        if found is None:
            raise CheckpointError(
                f"{self.adapter_folder}: tensor {key!r} belongs to {wanted}, which {self.source.name} has not; "
                "was this adapter trained on this base?"
            )
        return found

    def _no_weight(self, key: str) -> str:
        return (
            f"{self.adapter_folder}: tensor {key!r} changes a parameter that is no layer's weight, such as fused "
            f"experts (target_parameters in {ADAPTER_CONFIG}); {_WAY_OUT}"
        )

    def _low_rank(self, names: ModuleNames, module: str, weight: str, stored: Mapping[str, TensorInfo]) -> LowRank:
        kind = "lora_embedding_" if "lora_embedding_A" in stored else "lora_"
        missing = [part for part in (f"{kind}A", f"{kind}B") if part not in stored]
        magnitude = stored.get("lora_magnitude_vector")
        if bool(self.adapter_config.get("use_dora")) != (magnitude is not None):
            missing.append("lora_magnitude_vector, or use_dora in adapter_config.json")
        if missing:
            raise CheckpointError(f"{self.adapter_folder}: {module} lacks {missing[0]}; copy or download it again")
        first, second = stored[f"{kind}A"], stored[f"{kind}B"]
        shape = self.source.tensors[self._base_name(weight)].shape
        straight = LowRank(first, second, self._scale(module, stored), False, magnitude)
        turned = LowRank(first, second, straight.scale, True, magnitude)
        if kind == "lora_embedding_" or (turned.fits(shape) and not straight.fits(shape)):
            return turned
        if turned.fits(shape) and names.is_turned(module, bool(self.adapter_config.get("fan_in_fan_out"))):
            return turned
        return straight

    def _scale(self, module: str, stored: Mapping[str, TensorInfo]) -> float:
        first = stored.get("lora_A") or stored["lora_embedding_A"]
        rank = _of_pattern(self.adapter_config, "rank_pattern", module, self.adapter_config.get("r", 8))
        alpha = _of_pattern(self.adapter_config, "alpha_pattern", module, self.adapter_config.get("lora_alpha", 8))
        if first.shape[0] != rank:
            raise CheckpointError(
                f"{self.adapter_folder}: tensor {first.name!r} has rank {first.shape[0]}, adapter_config.json says "
                f"{rank}; copy or download both again"
            )
        return float(alpha) / (math.sqrt(rank) if self.adapter_config.get("use_rslora") else rank)

    def _rows(self, module: str) -> tuple[int, ...]:
        given = self.adapter_config.get("trainable_token_indices")
        if isinstance(given, Mapping):
            key = next((key for key in given if module == key or module.endswith(f".{key}")), None)
            given = given.get(key)
        if not isinstance(given, Sequence):
            raise CheckpointError(f"{self.adapter_folder}: adapter_config.json does not say which tokens were trained")
        return tuple(int(row) for row in given)

    def _base_name(self, name: str) -> str:
        return name if name in self.source.tensors else tied_tensors(self.source).get(name, name)

    def _untie(self) -> None:
        """Give names that share a tensor in the base, but not in the adapted model, tensors of their own."""
        tied = tied_tensors(self.source)
        changed = {
            alias: stored
            for alias, stored in tied.items()
            if alias in self._changes
            or any(not isinstance(change, NewRows) for change in self._changes.get(stored, ()))
        }
        kept = {alias for alias, stored in changed.items() if self._same_replacement(alias, stored)}
        for alias in kept:
            del self._changes[alias]
        untied = {alias: stored for alias, stored in changed.items() if alias not in kept}
        if not untied:
            return
        if len(tied) > 1:
            raise CheckpointError(
                f"{self.adapter_folder}: changes {min(untied)}, which {self.source.name} shares under "
                f"{len(tied) + 1} names; merge the adapter with PEFT and save that"
            )
        tensors = dict(self.source.tensors)
        for alias, stored in untied.items():
            if alias not in tensors:
                self._sources[alias] = stored
                info = tensors[stored]
                tensors[alias] = TensorInfo(alias, info.shape, info.dtype, info.file, info.start, info.stop)
        self.tensors = MappingProxyType(dict(sorted(tensors.items())))
        self.config = untied_config(self.source.config)
        self.untied = self.source.untied | frozenset(untied) | frozenset(untied.values())

    def _same_replacement(self, alias: str, stored: str) -> bool:
        """Whether the adapter stores one new tensor under both names."""
        pair = [self._changes.get(name, []) for name in (alias, stored)]
        if not all(len(changes) == 1 and isinstance(changes[0], Replaced) for changes in pair):
            return False
        (first,), (second,) = pair
        assert isinstance(first, Replaced)
        assert isinstance(second, Replaced)
        return torch.equal(self._read(first.info), self._read(second.info))

    def _check_shapes(self) -> None:
        for name, changes in self._changes.items():
            shape = self.tensors[name].shape
            for change in changes:
                if not change.fits(shape):
                    parts = [info for info in vars(change).values() if isinstance(info, TensorInfo)]
                    said = ", ".join(f"{info.name} {info.shape}" for info in parts)
                    raise CheckpointError(
                        f"{self.adapter_folder}: does not fit {name} {shape} of {self.source.name}: {said}; "
                        "was this adapter trained on this base, or on one with more tokens?"
                    )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the config of a LoRA adapter.

    Raises:
        CheckpointError: it cannot be read, is of another kind of adapter, or of a variant that no sum of weights can
            express.
    """
    file = folder / ADAPTER_CONFIG
    try:
        config: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no adapter: {ADAPTER_CONFIG} is missing; name a folder that PEFT wrote"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{file}: cannot be read as a JSON object ({error}); copy or download it again"
        ) from error
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder}: an adapter of type {config.get('peft_type')}, not LORA; {_WAY_OUT}")
    for field, what in _VARIANTS.items():
        if config.get(field):
            raise CheckpointError(f"{folder}: this LoRA adapter {what}: {field} in {ADAPTER_CONFIG}; {_WAY_OUT}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
        raise CheckpointError(
            f"{folder}: this adapter began by changing its base (init_lora_weights: {start}); convert it with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    return config


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (
        (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))
    )


def _no_change(shape: tuple[int, ...]) -> Factors:
    rows = shape[0] if shape else 1
    return Factors(torch.empty(0, math.prod(shape) // max(rows, 1)), torch.empty(rows, 0))


def _open(folder: Path, allow_pickle: bool) -> tuple[MappedFiles | PickledFiles, Mapping[str, TensorInfo]]:
    if (folder / ADAPTER).is_file():
        return MappedFiles(), read_header(folder / ADAPTER)
    pickled = folder / PICKLED_ADAPTER
    if not pickled.is_file():
        raise CheckpointError(f"{folder}: {ADAPTER} is missing; copy or download the folder again")
    if not allow_pickle:
        raise CheckpointError(
            f"{folder}: only pickled weights ({PICKLED_ADAPTER}), which can run code when read; save it again with "
            f"PEFT, or allow it by its name in the recipe: --allow-pickle MODEL"
        )
    files = PickledFiles([pickled])
    return files, files.tensors


def _bare(name: str) -> str:
    """Return a name without what PEFT's wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in ("base_layer", "modules_to_save"))


def _of_pattern(config: Mapping[str, Any], field: str, module: str, default: Any) -> Any:
    """Return a module's own value of a pattern: keys are regular expressions for the end of its name, as in PEFT."""
    for key, value in (config.get(field) or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
