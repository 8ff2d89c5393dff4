"""Running a path of layers in a resident model, without copying weights.

Each step of a path is a module of its own that shares the parameters of a parent's layer: a layer writes to the slot of
the key-value cache that its ``layer_idx`` names, so a layer that comes twice needs two.

Scales are run as they are exported: the exported model carries h / d where a path carries h (`folding`), and its norms
add their ``eps`` to the mean square of that. To what is added here the same number is d² times the ``eps``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from evomerge.errors import MergeError
from evomerge.merging.depths import DEPTH_FIELDS, PER_LAYER

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EPS = ("variance_epsilon", "eps")  # what norms call the number they add to the mean square


@dataclass(frozen=True)
class Layers:
    """The layers of a model, and its config's lists with one entry for each of them."""

    modules: nn.ModuleList
    lists: dict[str, list[Any]]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Layers:
        """Find a model's layers.

        Raises:
            MergeError: the model has several stacks of layers, or none.
        """
        config = model.config.get_text_config()
        name = _stack(model)
        modules = model.get_submodule(name)
        assert isinstance(modules, nn.ModuleList)
        lists = {
            field: list(value)
            for field, value in vars(config).items()
            if isinstance(value, list) and len(value) == len(modules) and field.startswith(PER_LAYER)
        }
        return cls(modules, lists)


@dataclass(frozen=True)
class RoutedStep:
    """One layer on a path, and what the hidden states are multiplied by before it."""

    layers: Layers
    index: int
    scale: float


class Router:
    """Sets paths of layers into a model, and its own layers back.

    Args:
        model: whose embeddings, final norm and head all paths have.

    Attributes:
        own: the model's own layers.

    Raises:
        MergeError: the model has several stacks of layers, or none.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._config: Any = model.config.get_text_config()
        owner, _, self._name = _stack(model).rpartition(".")
        self._owner = model.get_submodule(owner)
        self.own = Layers.of(model)
        self._changed: dict[nn.Module, tuple[str, float]] = {}
        self._depth_fields = [f for f in DEPTH_FIELDS if getattr(self._config, f, None) == len(self.own.modules)]

    @property
    def depth(self) -> int:
        """Number of the model's own layers."""
        return len(self.own.modules)

    def route(self, path: Sequence[RoutedStep], norms: Mapping[str, float]) -> None:
        """Let the hidden states take this path; the steps share the memory of the layers that they name.

        Args:
            path: at least one step.
            norms: module → the root of what its ``eps`` is multiplied by; see `folding.stream_norms`.
        """
        steps = nn.ModuleList(_shared(step.layers.modules[step.index]) for step in path)
        for number, (module, step) in enumerate(zip(steps, path, strict=True)):
            for part in module.modules():
                if hasattr(part, "layer_idx"):
                    vars(part)["layer_idx"] = number  # an own attribute: not a parameter, not a module
            if step.scale != 1:
                module.register_forward_pre_hook(_Scale(step.scale), with_kwargs=True)
        lists = {
            field: [step.layers.lists.get(field, own)[step.index] for step in path]
            for field, own in self.own.lists.items()
        }
        self._set(steps, lists)
        for name, divisor in norms.items():
            norm = self._owner.get_submodule(name)
            field = next(field for field in EPS if hasattr(norm, field))
            if norm not in steps.modules():
                self._changed[norm] = field, getattr(norm, field)
            vars(norm)[field] = getattr(norm, field) * divisor**2

    def restore(self) -> None:
        """Give the model its own layers back."""
        if getattr(self._owner, self._name) is not self.own.modules:
            self._set(self.own.modules, self.own.lists)
        for norm, (field, value) in self._changed.items():
            vars(norm)[field] = value
        self._changed.clear()

    def _set(self, layers: nn.ModuleList, lists: dict[str, list[Any]]) -> None:
        setattr(self._owner, self._name, layers)
        for field in self._depth_fields:
            setattr(self._config, field, len(layers))
        for field, values in lists.items():
            setattr(self._config, field, values)


class _Scale:
    """A hook that multiplies a layer's hidden states."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0] * self.scale, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * self.scale}


def _shared(module: nn.Module) -> nn.Module:
    """Return a copy that has the same parameters and buffers, and attributes and hooks of its own."""
    clone = copy.copy(module)
    clone._modules = {name: child if child is None else _shared(child) for name, child in module._modules.items()}
    clone._forward_pre_hooks = copy.copy(module._forward_pre_hooks)
    clone._forward_pre_hooks_with_kwargs = copy.copy(module._forward_pre_hooks_with_kwargs)
    return clone


def _stack(model: PreTrainedModel) -> str:
    """Return the name of the list of layers."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = {n: length for n, length in lists.items() if not any(n.startswith(f"{o}.") for o in lists if o != n)}
    if list(outermost.values()) != [depth]:
        found = ", ".join(f"{name} of {length}" for name, length in outermost.items()) or "none"
        what = f"paths go through one stack of layers, and {type(model).__name__} has not just that"
        raise MergeError(f"{what}; its lists of modules: {found}")
    return next(iter(outermost))
