"""The resident model of the in-place engine: built once by transformers, its tensors then found by name and by value.

What a file stores and what a model holds need not correspond one to one. transformers renames what older versions
wrote, stacks the experts of a layer into one tensor, splits or turns others. Where a checkpoint's tensor ends up is
not looked up in a table but seen: a tensor that is loaded as it is must be equal to the model's tensor of that name;
those that are converted are loaded with random numbers first, which are then found again in the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from evomerge.checkpoints.skeleton import Skeleton, load_config, model_class, quiet, skeleton
from evomerge.errors import CheckpointError, MergeError
from evomerge.merging.parents import Parents
from evomerge.merging.spread import spread_over_gpus

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Part(NamedTuple):
    """Rows ``start`` to ``stop`` of a checkpoint's tensor lie in ``view``, a view of the model's memory."""

    view: torch.Tensor
    start: int | None = None
    stop: int | None = None


@dataclass(frozen=True)
class Target:
    """Where one tensor of the checkpoint lies in the resident model.

    Args:
        shape: of the tensor in the checkpoint.
        parts: its places; none for a tensor that the model does not use.
    """

    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @cached_property
    def whole(self) -> torch.Tensor | None:
        """The contiguous part of the model that is this tensor, None if it lies otherwise."""
        view = self.parts[0].view if len(self.parts) == 1 else None
        return view if view is not None and view.shape == self.shape and view.is_contiguous() else None

    def buffer(self, dtype: torch.dtype) -> torch.Tensor:
        """Return where a merge may put this tensor: in the model itself, or a buffer of ``dtype`` to `write` from."""
        if self.whole is not None:
            return self.whole
        return torch.empty(self.shape, dtype=dtype, device=self.parts[0].view.device)

    def write(self, tensor: torch.Tensor) -> None:
        """Overwrite the model's numbers, rounded to its dtype."""
        for view, start, stop in self.parts:
            view.copy_(tensor[start:stop] if start is not None else tensor)


class ResidentModel:
    """A model of transformers with the weights of one parent, and where they lie.

    Args:
        parents: every model that will be merged into it; where they disagree on tied tensors, nothing is tied.
        base: reference of the parent whose config and class it has.
        dtype: of its weights ("float32", "bfloat16", "float16"); the base checkpoint's by default.
        device: where it lives.
        spread: lay its layers over all GPUs of this process.

    Attributes:
        model: the model, in eval mode.
        config: its config.
        dtype: of its weights.
        untied: names that the model stores although some parents share them.
        targets: checkpoint's name → where that tensor lies; None where that could not be seen for all of them.

    Raises:
        MergeError: transformers cannot build the model from the base, or only with code that it brings along.
    """

    def __init__(
        self, parents: Parents, base: str, dtype: str | None = None, device: str = "cpu", *, spread: bool = False
    ) -> None:
        self.dtype = getattr(torch, dtype) if dtype else usual_dtype(parents, base)
        references = list(parents.checkpoints)
        self.untied = parents.untied(references)
        checkpoint = parents[base]
        try:
            self.config = load_config(checkpoint.folder, checkpoint.name, checkpoint.config)
            self._class = model_class(checkpoint.config, checkpoint.name)
        except CheckpointError as error:
            raise MergeError(str(error)) from error
        if self.untied:  # before building: the flag decides which parameters the model has
            untie(self.config)
        known = skeleton(checkpoint)
        tensors = _starting_tensors(parents, base, known)
        random = {
            name: _random(tensor, seed, self.dtype)
            for seed, (name, tensor) in enumerate(tensors.items())
            if known is not None and known.name_of(name)[1] is not None and tensor.is_floating_point()
        }
        self.model: PreTrainedModel = _placed(self.build({**tensors, **random}), device, spread)
        self.targets = _find_targets(self.model, {**tensors, **random}, random, known)
        if self.targets is None and random:
            self.model = _placed(self.build(tensors), device, spread)
        for name, target in (self.targets or {}).items():
            if name in random:
                target.write(tensors[name])

    @property
    def device(self) -> torch.device:
        """Where the model lives; of one that is spread, where it begins."""
        return self.model.device

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the weights the way transformers loads a file with these tensors; slow, for any architecture.

        Raises:
            MergeError: they make a model of another shape.
        """
        built = dict(self.build(tensors).state_dict(keep_vars=True))
        for name, target in self.model.state_dict(keep_vars=True).items():
            if built[name].shape != target.shape:
                raise MergeError(f"the recipe makes {name} {tuple(built[name].shape)}, not {tuple(target.shape)}")
            target.copy_(built[name])

    def build(self, tensors: Mapping[str, torch.Tensor]) -> PreTrainedModel:
        """Return a new model of this class, loaded with a checkpoint's tensors.

        Raises:
            MergeError: transformers cannot build it, or tensors are missing.
        """
        # Copies: transformers makes parameters of the very tensors it is given, and ours are views of the parents.
        state = {name: tensor.clone() for name, tensor in tensors.items()}
        with quiet():
            try:
                model, info = self._class.from_pretrained(
                    None, config=self.config, state_dict=state, dtype=self.dtype, output_loading_info=True
                )
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise MergeError(f"transformers cannot build {self._class.__name__} from the base: {error}") from error
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise MergeError(f"the parents lack weights that {self._class.__name__} has: {missing}")
        model.eval().requires_grad_(False)
        return model


def _placed(model: Any, device: str, spread: bool) -> PreTrainedModel:
    return spread_over_gpus(model) if spread else model.to(device)


def usual_dtype(parents: Parents, base: str) -> torch.dtype:
    """Return the floating dtype that most bytes of this parent have."""
    sizes: Counter[torch.dtype] = Counter()
    for info in parents[base].tensors.values():
        if info.dtype.is_floating_point:
            sizes[info.dtype] += info.stop - info.start
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def untie(config: Any) -> None:
    """Make a model of this config store every tensor under its own name, in nested configs too."""
    nested = [getattr(config, name) for name in getattr(config, "sub_configs", {})]
    for each in (config, *nested):
        if getattr(each, "tie_word_embeddings", False):
            each.tie_word_embeddings = False


def _starting_tensors(parents: Parents, base: str, known: Skeleton | None) -> dict[str, torch.Tensor]:
    """Return the base's tensors, and of others those that its class has and the base lacks."""
    names = parents.tensor_names(list(parents.checkpoints))
    tensors = {name: parents.tensor(base, name) for name in names[base]}
    for reference, theirs in names.items():
        for name in theirs:
            if known is not None and name not in tensors and known.name_of(name)[0] in known.shapes:
                tensors[name] = parents.tensor(reference, name)
    return tensors


def _random(tensor: torch.Tensor, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of the same shape, unlike that of any other seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(tensor.shape, dtype=dtype).uniform_(-1, 1, generator=generator)


def _find_targets(
    model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], converted: Collection[str], known: Skeleton | None
) -> dict[str, Target] | None:
    """Return checkpoint name → where it lies; None unless they cover the model, each number once."""
    state = model.state_dict(keep_vars=True)
    found: dict[str, Target] = {}
    used: Counter[tuple[torch.device, int]] = Counter()
    for name, tensor in tensors.items():
        named = known.name_of(name)[0] if known else name
        if name in converted:
            parts = _search(tensor, state, named)
        else:
            target = state.get(named)
            if target is not None and (target.shape != tensor.shape or not _equal(target, tensor)):
                return None
            parts = () if target is None else (Part(target),)
        found[name] = Target(tuple(tensor.shape), parts)
        for part in parts:
            used[_memory(part.view)] += part.view.numel()
    every = {_memory(target): target.numel() for target in state.values()}
    return found if used == {place: count for place, count in every.items() if count} else None


def _memory(tensor: torch.Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _search(source: torch.Tensor, state: Mapping[str, torch.Tensor], named: str) -> tuple[Part, ...]:
    """Return where the model holds ``source``: in the tensor it is loaded into, or cut into several."""
    views = _views(state[named], source.shape) if named in state else ()
    view = next((each for each in views if _equal(each, source)), None)
    return _pieces(source, state.values()) if view is None else (Part(view),)


def _pieces(source: torch.Tensor, targets: Iterable[torch.Tensor]) -> tuple[Part, ...]:
    """Return the model's tensors that are runs of rows of ``source`` and make it up together; none if they do not."""
    parts: list[Part] = []
    start = 0
    candidates = [each for each in targets if each.dim() and each.shape[1:] == source.shape[1:] and len(each)]
    while start < len(source):
        for target in candidates:
            stop = start + len(target)
            if stop <= len(source) and _equal(target, source[start:stop]):
                parts.append(Part(target, start, stop))
                start = stop
                break
        else:
            return ()
    return tuple(parts)


def _views(target: torch.Tensor, shape: torch.Size) -> Iterator[torch.Tensor]:
    """Yield the views of ``target`` that have this shape: all of it, one of a stack, a block of rows or columns, every
    second row or column; each also turned."""
    if target.numel() == shape.numel():
        yield target.view(shape)
    layers = list(target) if target.dim() == len(shape) + 1 else [target] if target.dim() == len(shape) else []
    for layer in layers:
        for turned in (layer, layer.transpose(-1, -2)) if layer.dim() > 1 else (layer,):
            for dim in range(turned.dim()):
                size, whole = shape[dim], turned.shape[dim]
                rest = shape[:dim] + shape[dim + 1 :] == turned.shape[:dim] + turned.shape[dim + 1 :]
                if rest and size and whole % size == 0:
                    yield from (turned.narrow(dim, start, size) for start in range(0, whole, size))
                    if whole == 2 * size:
                        yield from (turned[(slice(None),) * dim + (slice(first, None, 2),)] for first in (0, 1))


def _equal(target: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether the model's tensor holds these numbers, rounded to its dtype; cheap where the first ones differ."""
    first = (0,) * target.dim()
    if target.numel() and bool(target[first].cpu() != tensor[first].to(target.dtype)):
        return False
    return torch.equal(target.detach(), tensor.to(target.device, target.dtype))
