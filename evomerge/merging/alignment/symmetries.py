"""The permutation symmetries of any model that transformers can build, found by watching it compute.

The model is built without data and run once under `AxisTracer`. What that finds is then checked with numbers: on a
small copy of the model with random weights, every group is permuted at random, and the outputs must not change.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from evomerge.errors import MergeError
from evomerge.merging.alignment.axes import Atom, Axis, fix, resolve, size_of
from evomerge.merging.alignment.specification import Dimension, Factor, Group, Segment, Specification, TensorAxes
from evomerge.merging.alignment.tracing import AxisTracer, Label, tensors_in

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TOKENS = 7
IMAGE = 64  # pixels, for models that take images of any size
_WAY_OUT = "align such models through Python, with a Specification of your own (docs/alignment.md)"


@lru_cache(maxsize=32)
def _discover(config: str) -> Specification:
    from evomerge.merging.alignment.verification import verified

    return verified(json.loads(config))


def discover(config: Mapping[str, Any]) -> Specification:
    """Return the permutation symmetries of models with this ``config.json``, by the names of the files' tensors.

    Found once for each config, and checked numerically.

    Raises:
        MergeError: transformers cannot build or run such a model, or no check was possible.
    """
    return _discover(json.dumps(config, sort_keys=True))


def trace(config: Mapping[str, Any]) -> Specification:
    """Return the symmetries that follow from the model's operations, unchecked.

    Raises:
        MergeError: transformers cannot build or run such a model.
    """
    from torch._subclasses import FakeTensorMode

    built = config_of(config)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), _failing(config):
        with torch.device("meta"):
            model = build(built)
        with fake:  # as if on the CPU, but without data
            model.to_empty(device="cpu")
            model.tie_weights()
        tracer = AxisTracer()
        # By name, so that nothing depends on the order in which modules were made.
        state = dict(sorted(model.state_dict(keep_vars=True).items()))
        for name, tensor in state.items():
            if tensor.is_floating_point() and id(tensor) not in tracer.touched:
                tracer.touched.add(id(tensor))
                tracer.enter(name, tensor)
        tracer.touched.clear()
        with fake, tracer:
            outputs = run(model, inputs_for(model))
            for tensor in outputs:
                for axis in tracer.label(tensor).axes:
                    fix(axis)
            untouched = {
                size_of(axis)
                for tensor in state.values()
                if id(tensor) not in tracer.touched
                for axis in tracer.label(tensor).axes
            }
            tracer.slices = True
            stored = stored_tensors(model)
        labels = {name: tracer.label(tensor) for name, tensor in sorted(stored.items())}
    reads = {
        name: frozenset(d for d, where in enumerate(label.weight or ()) if where in tracer.reads)
        for name, label in labels.items()
    }
    return _Writer(labels, reads, untouched).specification()


def config_of(config: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the config as transformers' object, set up for the plainest computation.

    Raises:
        MergeError: transformers does not know the model type.
    """
    from transformers import CONFIG_MAPPING

    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise MergeError(
            f"align: transformers knows no model type {model_type!r}, so its neurons are not known; {_WAY_OUT}"
        )
    built = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(dict(config)))
    built._attn_implementation = "eager"
    built._experts_implementation = "batched_mm"
    return built


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model of a config, in eval mode, its weights undefined."""
    import transformers
    from transformers.initialization import no_init_weights

    names = config.architectures or [""]
    model_class: Any = getattr(transformers, names[0], None)
    with no_init_weights():
        model = model_class(config) if model_class else transformers.AutoModel.from_config(config)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def inputs_for(model: PreTrainedModel, generator: torch.Generator | None = None) -> dict[str, Any]:
    """Return small inputs for a model: token ids, pixels, or both; zeros without a generator.

    Raises:
        MergeError: the model wants something else.
    """
    taken = inspect.signature(model.forward).parameters
    text, config = model.config.get_text_config(), model.config
    given: dict[str, Any] = {}
    if "input_ids" in taken:
        ids = torch.zeros(1, TOKENS, dtype=torch.long)
        if generator is not None:
            ids = torch.randint(5, text.vocab_size, (1, TOKENS), generator=generator)
        given["input_ids"] = ids
        if config.is_encoder_decoder and "decoder_input_ids" in taken:
            given["decoder_input_ids"] = ids.flip(1)
    if "pixel_values" in taken and (model.main_input_name == "pixel_values" or hasattr(config, "projection_dim")):
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or IMAGE
        size = size if isinstance(size, (list, tuple)) else [size] * 2
        shape = (1, getattr(vision, "num_channels", 3), *size)
        pixels = torch.zeros(shape) if generator is None else torch.randn(shape, generator=generator)
        given["pixel_values"] = pixels.to(model.dtype)
    if not given:
        raise MergeError(f"align: {type(model).__name__} takes neither tokens nor pixels; {_WAY_OUT}")
    if "use_cache" in taken:
        given["use_cache"] = False
    return given


def run(model: PreTrainedModel, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return every floating-point tensor that the model gives out."""
    out: Any = model(**inputs, return_dict=True)
    return [tensor for tensor in tensors_in(out) if tensor.is_floating_point()]


def stored_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the model's tensors as `save_pretrained` would write them.

    transformers fuses and renames some weights in memory, such as those of experts.
    """
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, dict(sorted(model.state_dict(keep_vars=True).items())))


@contextmanager
def _failing(config: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever transformers or PyTorch raise into an error that says what could not be done."""
    try:
        yield
    except MergeError:
        raise
    except Exception as error:  # a model's code may raise anything
        what = (config.get("architectures") or [config.get("model_type")])[0]
        reason = str(error).partition("\n")[0]
        raise MergeError(
            f"align: {what} cannot be run without data ({type(error).__name__}: {reason}); {_WAY_OUT}"
        ) from error


class _Writer:
    """From labels to a `Specification`."""

    def __init__(self, labels: Mapping[str, Label], reads: Mapping[str, frozenset[int]], untouched: set[int]) -> None:
        self._labels, self._reads = labels, reads
        self._names: dict[int, str] = {}
        self._sizes: dict[str, int] = {}
        self._fix_what_cannot_be_said(untouched)

    def specification(self) -> Specification:
        tensors = {name: self._tensor(name, label) for name, label in self._labels.items()}
        named = {name: axes for name, axes in tensors.items() if axes.groups()}
        flat = Specification({name: Group(size) for name, size in self._sizes.items()}, named)
        return _nested(flat)

    def _fix_what_cannot_be_said(self, untouched: set[int]) -> None:
        """Fix sums within products, atoms twice in one product, atoms in one place only, and unknown ones.

        A weight that the model never used (the image side of a model that was shown text) may belong to any group of
        the same size, so these are fixed.
        """
        places: dict[int, set[tuple[int, int]]] = {}
        for label in self._labels.values():
            for axis in (*label.axes, *(axis for axis, _ in label.at)):
                for segment in _segments(axis):
                    for atom in segment[1:]:
                        if atom.parts is not None:
                            fix((atom,))
                    for atom in segment:
                        if sum(other is atom for other in segment) > 1 or atom.size in untouched:
                            fix((atom,))
                        places.setdefault(id(atom), set()).add((id(label), id(axis)))
        for label in self._labels.values():
            for axis in label.axes:
                for segment in _segments(axis):
                    for atom in segment:
                        if len(places[id(atom)]) < 2:
                            fix((atom,))
            for axis, _ in label.at:
                if len(resolve(axis)) != 1 or resolve(axis)[0].parts is not None:
                    fix(axis)

    def _tensor(self, name: str, label: Label) -> TensorAxes:
        dimensions = tuple(self._dimension(name, number, axis) for number, axis in enumerate(label.axes))
        at = []
        for axis, position in label.at:
            atom = resolve(axis)[0]
            if not atom.fixed:
                at.append((str(self._factor(name, "at", atom)), position))
        return TensorAxes(dimensions, tuple(at), self._reads[name])

    def _dimension(self, name: str, number: int, axis: Axis) -> Dimension:
        found: list[Segment] = []
        for segment in _segments(axis):
            factors: list[Factor] = []
            for atom in segment:
                factor = self._factor(name, str(number), atom)
                if isinstance(factor, int) and factors and isinstance(factors[-1], int):
                    factors[-1] *= factor
                elif factor != 1:
                    factors.append(factor)
            if found and all(isinstance(factor, int) for factor in (*found[-1], *factors)):
                found[-1] = (_count(found[-1]) + _count(factors),)
            else:
                found.append(tuple(factors) or (1,))
        return tuple(found)

    def _factor(self, name: str, place: str, atom: Atom) -> Factor:
        if atom.fixed or atom.parts is not None or atom.size == 1:
            return atom.size
        if id(atom) not in self._names:
            chosen, count = f"{name}:{place}", 1
            while chosen in self._sizes:
                count += 1
                chosen = f"{name}:{place}#{count}"
            self._names[id(atom)] = chosen
            self._sizes[chosen] = atom.size
        return self._names[id(atom)]


def _count(factors: Sequence[Factor]) -> int:
    total = 1
    for factor in factors:
        total *= int(factor)
    return total


def _segments(axis: Axis) -> list[tuple[Atom, ...]]:
    """Return the axis as products that lie one after the other."""
    axis = resolve(axis)
    if not axis or axis[0].parts is None:
        return [axis]
    return [(*segment, *axis[1:]) for part in axis[0].parts for segment in _segments(part)]


def _nested(flat: Specification) -> Specification:
    """Let groups that only ever occur beneath another have an order of their own for each of its members.

    So numbers of a head are permuted head by head, and neurons of an expert expert by expert.
    """
    above: dict[str, set[str]] = {}
    for axes in flat.tensors.values():
        outer = {name for name, _ in axes.at}
        for dimension in axes.dimensions:
            for segment in dimension:
                seen = set(outer)
                for factor in segment:
                    if isinstance(factor, str):
                        above[factor] = above.get(factor, set(seen)) & seen
                        seen.add(factor)
        for name in outer:
            above[name] = set()
    groups = dict(flat.groups)
    for name, candidates in above.items():
        roots = [candidate for candidate in candidates if not above[candidate]]
        if len(roots) == 1:
            groups[name] = replace(groups[name], within=roots[0])
    return replace(flat, groups=groups)
