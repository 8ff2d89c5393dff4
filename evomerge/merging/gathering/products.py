"""Seeing every product of activations with a weight matrix while a model runs.

PyTorch calls are watched instead of modules: whatever multiplies by a parameter, or by a view of one, is found,
be it an ``nn.Linear``, GPT-2's ``Conv1D``, or one expert's slice of a tensor that holds them all. No architecture is
known by name.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode


class Operand(NamedTuple):
    """A weight matrix as it was multiplied by: a view of a parameter.

    Args:
        parameter: its name.
        offset: of the view's first entry among the parameter's.
        inputs: (size, stride) of the axis that runs over the inputs.
        outputs: (size, stride) of the other axis.
    """

    parameter: str
    offset: int
    inputs: tuple[int, int]
    outputs: tuple[int, int]

    def input_axis(self, parameter: str, offset: int, shape: Sequence[int], strides: Sequence[int]) -> int | None:
        """Return which axis of a view of the parameter runs over all inputs; None if it is no block of outputs."""
        if parameter != self.parameter or len(shape) != 2:
            return None
        (size, stride), (other_size, other_stride) = self.inputs, self.outputs
        for axis in (1, 0):
            first, beyond = divmod(offset - self.offset, other_stride)
            fits = (shape[axis], strides[axis]) == (size, stride) and not beyond and first >= 0
            if fits and strides[1 - axis] == other_stride and first + shape[1 - axis] <= other_size:
                return axis
        return None


Seen = Callable[[Operand, torch.Tensor, torch.Tensor], None]


class Products(TorchFunctionMode):
    """While active, calls ``seen(operand, inputs, outputs)`` for each product with a parameter.

    Args:
        parameters: by name; contiguous.
        seen: gets the operand, the inputs of shape (..., inputs) and the product of shape (..., outputs).

    Attributes:
        embeddings: names of the parameters that tokens were looked up in.
    """

    def __init__(self, parameters: Iterable[tuple[str, torch.Tensor]], seen: Seen) -> None:
        super().__init__()
        self._seen = seen
        held = sorted((p.data_ptr(), p.nbytes, name) for name, p in parameters if p.numel())
        self._starts = [start for start, _, _ in held]
        self._held = held
        self.embeddings: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "linear":
            self._product(args[0], _argument(args, kwargs, 1, "weight"), outputs, input_axis=-1)
        elif name in ("matmul", "mm", "bmm", "__matmul__"):
            self._matmul(args[0], args[1] if len(args) > 1 else _argument(args, kwargs, 1, "other"), outputs)
        elif name in ("addmm", "baddbmm"):
            self._matmul(args[1], args[2], outputs)
        elif name == "embedding" and (table := self._name(_argument(args, kwargs, 1, "weight"))) is not None:
            self.embeddings.add(table)
        return outputs

    def _matmul(self, left: Any, right: Any, outputs: torch.Tensor) -> None:
        if self._name(right) is not None:
            self._product(left, right, outputs, input_axis=-2)
        elif self._name(left) is not None and right.ndim >= 2:
            self._product(right.mT, left, outputs.mT, input_axis=-1)

    def _product(self, inputs: torch.Tensor, weight: Any, outputs: torch.Tensor, *, input_axis: int) -> None:
        name = self._name(weight)
        if name is None or weight.ndim not in (2, 3):
            return
        if weight.ndim == 3:
            if inputs.ndim == 3 and len(inputs) == len(weight):  # one product for each expert
                for part in zip(inputs, weight, outputs, strict=True):
                    self._product(*part, input_axis=input_axis)
            return
        axis = weight.ndim + input_axis
        start = self._starts[bisect_right(self._starts, weight.data_ptr()) - 1]
        offset = (weight.data_ptr() - start) // weight.element_size()
        sizes = [(weight.shape[a], weight.stride(a)) for a in (axis, 1 - axis)]
        self._seen(Operand(name, offset, sizes[0], sizes[1]), inputs, outputs)

    def _name(self, tensor: Any) -> str | None:
        """Return the parameter that the tensor is, or is a view of."""
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or not tensor.numel():
            return None
        index = bisect_right(self._starts, tensor.data_ptr()) - 1
        if index < 0:
            return None
        start, size, name = self._held[index]
        return name if tensor.data_ptr() < start + size else None


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any] | None, index: int, name: str) -> Any:
    return args[index] if len(args) > index else (kwargs or {}).get(name)
