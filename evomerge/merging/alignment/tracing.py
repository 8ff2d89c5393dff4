"""Watching a model compute, to learn which axes of its tensors belong together.

`AxisTracer` sees every operation of PyTorch's core ("aten") that a model calls, whatever its architecture, on tensors
without data. For each it knows what the operation says about axes: a product of matrices makes two axes one, a
softmax leaves them as they are. An operation that it does not know fixes every axis that goes in, so a symmetry may
be missed but is never invented. The file is long because each operation has a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evomerge.merging.alignment.axes import (
    Axis,
    concatenate,
    cut_axis,
    fix,
    new_axis,
    reshape,
    resolve,
    size_of,
    unify,
)


@dataclass(frozen=True)
class Label:
    """What is known of one tensor.

    Args:
        axes: one for each dimension.
        indexes: for tensors of integers, the axis whose positions they name.
        at: (axis, position) for each axis of which this tensor is one slice, such as one expert of several.
        weight: for a weight that was at most transposed or picked from, (its name, its dimension) by dimension.
    """

    axes: tuple[Axis, ...]
    indexes: Axis | None = None
    at: tuple[tuple[Axis, int], ...] = ()
    weight: tuple[tuple[str, int] | None, ...] | None = None


class AxisTracer(TorchDispatchMode):
    """While active, keeps a `Label` for each tensor.

    Attributes:
        slices: slices of one position are remembered as such (``Label.at``) instead of giving the position away;
            for taking apart what lies in separate tensors on disk.
        touched: identities of the tensors that went into any operation.
        reads: (name, dimension) of weights along which products are summed: there neurons are read, not written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slices = False
        self.touched: set[int] = set()
        self.reads: set[tuple[str, int]] = set()
        self._labels: dict[int, Label] = {}
        self._alive: list[torch.Tensor] = []  # so that no id is given to a second tensor

    def label(self, tensor: torch.Tensor) -> Label:
        """Return what is known of a tensor: nothing but its shape, if it was never seen."""
        if id(tensor) not in self._labels:
            self.set(tensor, Label(tuple(new_axis(size, fixed=True) for size in tensor.shape)))
        return self._labels[id(tensor)]

    def set(self, tensor: torch.Tensor, label: Label) -> None:
        """Say what is known of a tensor."""
        self._alive.append(tensor)
        self._labels[id(tensor)] = label

    def enter(self, name: str, tensor: torch.Tensor) -> None:
        """Let every axis of a weight be an unknown."""
        weight = tuple((name, dimension) for dimension in range(tensor.dim()))
        self.set(tensor, Label(tuple(new_axis(size) for size in tensor.shape), weight=weight))

    def read(self, label: Label, dimension: int) -> None:
        """Note that a weight is summed over along a dimension."""
        if label.weight is not None and (where := label.weight[dimension]) is not None:
            self.reads.add(where)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        self.touched.update(map(id, given))
        inputs = [self.label(tensor) for tensor in given]
        out = func(*args, **kwargs)
        outputs = list(tensors_in(out))
        if outputs:
            labels = self._labels_of(func, args, kwargs, inputs, outputs)
            at = tuple(dict.fromkeys(place for label in inputs for place in label.at))
            for tensor, label in zip(outputs, labels, strict=True):
                self.set(tensor, replace(label, at=tuple(dict.fromkeys(label.at + at))))
        return out

    def _labels_of(
        self, func: Any, args: Any, kwargs: Any, inputs: Sequence[Label], outputs: Sequence[torch.Tensor]
    ) -> list[Label]:
        name = func.overloadpacket.__name__
        shapes = [tuple(tensor.shape) for tensor in outputs]
        if name in RULES:
            found = RULES[name](self, _Call(func, args, kwargs, inputs, shapes))
        elif name in COPIES and len(inputs) == 1:
            found = [inputs[0]]
        elif torch.Tag.pointwise in func.tags or name in COPIES:
            for label in inputs:
                fix(label.indexes or ())  # arithmetic on positions looks at them
            found = [_broadcast(inputs, shape) for shape in shapes]
        else:
            found = None
        if found is None or [_sizes(label) for label in found] != shapes:
            for label in inputs:
                _fix_all(label)
            return [Label(tuple(new_axis(size, fixed=True) for size in shape)) for shape in shapes]
        return found


@dataclass(frozen=True)
class _Call:
    """One call of an operation."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Sequence[Label]
    shapes: Sequence[tuple[int, ...]]

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operation's schema."""
        if name in self.kwargs:
            return self.kwargs[name]
        for given, parameter in zip(self.args, self.func._schema.arguments, strict=False):
            if parameter.name == name:
                return given
        return next((p.default_value for p in self.func._schema.arguments if p.name == name), default)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Axes of the first tensor."""
        return self.inputs[0].axes

    def dimension(self, name: str = "dim") -> int:
        """Return an argument that names a dimension of the first tensor, counted from 0."""
        return self.argument(name) % max(len(self.axes), 1)

    def dimensions(self, name: str = "dim") -> list[int]:
        """Return an argument that names some dimensions, all of them by default."""
        given = self.argument(name)
        given = [given] if isinstance(given, int) else given
        return [d % len(self.axes) for d in given] if given else list(range(len(self.axes)))


Rule = Callable[[AxisTracer, _Call], list[Label] | None]
RULES: dict[str, Rule] = {}
COPIES = frozenset({"_to_copy", "clone", "detach", "alias", "copy", "copy_", "lift_fresh"})


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter the decorated function as the rule of these operations."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def tensors_in(tree: Any) -> Iterable[torch.Tensor]:
    """Yield the tensors in nested lists, tuples and mappings."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for inner in tree:
            yield from tensors_in(inner)
    elif isinstance(tree, Mapping):
        yield from tensors_in(list(tree.values()))


def _sizes(label: Label) -> tuple[int, ...]:
    return tuple(map(size_of, label.axes))


def _fix_all(label: Label) -> None:
    for axis in (*label.axes, label.indexes or ()):
        fix(axis)


def _broadcast(inputs: Sequence[Label], shape: Sequence[int]) -> Label:
    """Return the label of what is computed position by position from tensors that broadcast to ``shape``."""
    axes: list[Axis] = []
    for dimension, size in enumerate(shape):
        back = len(shape) - dimension
        at = [label.axes[-back] for label in inputs if len(label.axes) >= back]
        found = [axis for axis in at if size_of(axis) == size]
        for other in found[1:]:
            unify(found[0], other)
        axes.append(found[0] if found else new_axis(size))
    return Label(tuple(axes))


@rule("ones", "zeros", "full", "empty", "ones_like", "zeros_like", "full_like", "empty_like", "new_ones", "new_zeros")
def _constant(tracer: AxisTracer, call: _Call) -> list[Label]:
    return [Label(tuple(new_axis(size) for size in shape)) for shape in call.shapes]


@rule("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "_reshape_alias")
def _view(tracer: AxisTracer, call: _Call) -> list[Label] | None:
    if 0 in call.shapes[0]:
        return None
    label, shape = call.inputs[0], call.shapes[0]
    weight = None
    if label.weight is not None and [n for n in _sizes(label) if n > 1] == [n for n in shape if n > 1]:
        kept = iter([where for where, size in zip(label.weight, _sizes(label), strict=True) if size > 1])
        weight = tuple(next(kept) if size > 1 else None for size in shape)
    return [Label(tuple(reshape(call.axes, shape)), label.indexes, weight=weight)]


@rule("t", "transpose", "permute", "numpy_T")
def _transpose(tracer: AxisTracer, call: _Call) -> list[Label]:
    order = list(range(len(call.axes)))
    name = call.func.overloadpacket.__name__
    if name == "permute":
        order = [order[dimension] for dimension in call.argument("dims")]
    elif name == "transpose":
        first, second = (call.argument(f"dim{n}") % len(order) for n in (0, 1))
        order[first], order[second] = order[second], order[first]
    else:
        order.reverse()
    weight = call.inputs[0].weight
    moved = None if weight is None else tuple(weight[dimension] for dimension in order)
    return [Label(tuple(call.axes[dimension] for dimension in order), call.inputs[0].indexes, weight=moved)]


@rule("expand")
def _expand(tracer: AxisTracer, call: _Call) -> list[Label]:
    return [replace(_broadcast(call.inputs, call.shapes[0]), indexes=call.inputs[0].indexes)]


@rule("repeat")
def _repeat(tracer: AxisTracer, call: _Call) -> list[Label]:
    repeats = call.argument("repeats")
    old = [()] * (len(repeats) - len(call.axes)) + list(call.axes)
    return [Label(tuple((*new_axis(n), *axis) for n, axis in zip(repeats, old, strict=True)))]


@rule("select", "unbind")
def _select(tracer: AxisTracer, call: _Call) -> list[Label]:
    dimension = call.dimension()
    fix(call.axes[dimension])
    kept = (*call.axes[:dimension], *call.axes[dimension + 1 :])
    return [Label(kept, call.inputs[0].indexes)] * len(call.shapes)


@rule("slice")
def _slice(tracer: AxisTracer, call: _Call) -> list[Label] | None:
    dimension, size = call.dimension(), size_of(call.axes[call.dimension()])
    start, stop, _ = slice(call.argument("start"), call.argument("end")).indices(size)
    if call.argument("step", 1) != 1 or stop <= start:
        return None
    return [_piece(tracer, call.inputs[0], dimension, start, stop)]


@rule("split", "split_with_sizes", "chunk")
def _pieces(tracer: AxisTracer, call: _Call) -> list[Label] | None:
    dimension = call.dimension()
    pieces, start = [], 0
    for shape in call.shapes:
        pieces.append(_piece(tracer, call.inputs[0], dimension, start, start + shape[dimension]))
        start += shape[dimension]
    return pieces


def _piece(tracer: AxisTracer, label: Label, dimension: int, start: int, stop: int) -> Label:
    """Return the label of the positions [start, stop) along one dimension."""
    axis = label.axes[dimension]
    size, at = size_of(axis), label.at
    if tracer.slices and stop - start == 1 < size and len(resolve(axis)) == 1:
        axis, at = (), (*at, (axis, start))
    elif stop - start < size:
        axis = _stretch(axis, start, stop)
    return replace(label, axes=(*label.axes[:dimension], axis, *label.axes[dimension + 1 :]), at=at)


def _stretch(axis: Axis, start: int, stop: int) -> Axis:
    for at, side in ((stop, 0), (start, 1)):
        if 0 < at < size_of(axis):
            cut = cut_axis(axis, at)
            if cut is None:
                return new_axis(stop - start, fixed=True)
            axis = cut[side]
    return axis


@rule("cat")
def _cat(tracer: AxisTracer, call: _Call) -> list[Label]:
    inputs = [label for label in call.inputs if len(label.axes) == len(call.shapes[0])]  # PyTorch skips empty ones
    given = call.argument("dim", 0)
    dimension = (0 if given is None else given) % len(call.shapes[0])
    joined = concatenate([label.axes[dimension] for label in inputs if size_of(label.axes[dimension])])
    flat = [Label((*label.axes[:dimension], (), *label.axes[dimension + 1 :])) for label in inputs]
    shape = [1 if d == dimension else size for d, size in enumerate(call.shapes[0])]
    axes = list(_broadcast(flat, shape).axes)
    axes[dimension] = joined
    return [Label(tuple(axes))]


@rule("stack")
def _stack(tracer: AxisTracer, call: _Call) -> list[Label]:
    dimension = (call.argument("dim", 0) or 0) % len(call.shapes[0])
    axes = list(_broadcast(call.inputs, [size for d, size in enumerate(call.shapes[0]) if d != dimension]).axes)
    axes.insert(dimension, new_axis(call.shapes[0][dimension], fixed=True))
    return [Label(tuple(axes))]


@rule("mm", "bmm", "addmm", "baddbmm", "dot", "mv")
def _product(tracer: AxisTracer, call: _Call) -> list[Label]:
    """Sums over the last axis of the first matrix and the last but one of the second."""
    *added, first, second = call.inputs
    tracer.read(first, -1)
    tracer.read(second, max(len(second.axes) - 2, 0))
    inner = second.axes[-2] if len(second.axes) > 1 else second.axes[-1]
    unify(first.axes[-1], inner)
    left, right = first.axes[:-1], second.axes[-1:] if len(second.axes) > 1 else ()
    if len(second.axes) == 3:
        unify(first.axes[0], second.axes[0])
    result = Label((*left, *right))
    return [_broadcast([result, *added], call.shapes[0])]


@rule("embedding")
def _embedding(tracer: AxisTracer, call: _Call) -> list[Label]:
    table, indices = call.inputs[:2]
    _look_up(table.axes[0], indices)
    return [Label((*indices.axes, *table.axes[1:]))]


@rule("index", "index_select")
def _index(tracer: AxisTracer, call: _Call) -> list[Label] | None:
    """Positions picked along one dimension; other forms are left to the safe side."""
    table, *others = call.inputs
    given = call.argument("indices")
    if call.func.overloadpacket.__name__ == "index_select":
        used = [call.dimension()]
    else:
        used = [dimension for dimension, index in enumerate(given) if index is not None]
    if len(used) != 1 or len(others) != 1:
        return None
    _look_up(table.axes[used[0]], others[0])
    axes = (*table.axes[: used[0]], *others[0].axes, *table.axes[used[0] + 1 :])
    known = table.weight or (None,) * len(table.axes)
    weight = (*known[: used[0]], *((None,) * len(others[0].axes)), *known[used[0] + 1 :])
    return [Label(axes, weight=weight)]


@rule("gather", "scatter", "scatter_")
def _gather(tracer: AxisTracer, call: _Call) -> list[Label] | None:
    """As `index`, with a position of its own for each entry."""
    table, indices, *source = call.inputs
    dimension = call.dimension()
    _look_up(table.axes[dimension], indices)
    for label in (indices, *source):
        for d, axis in enumerate(label.axes):
            if d != dimension:
                if size_of(axis) != size_of(table.axes[d]):
                    return None
                unify(axis, table.axes[d])
    for label in source:
        unify(label.axes[dimension], indices.axes[dimension])
    return [Label(table.axes if source or call.func.overloadpacket.__name__ != "gather" else indices.axes)]


def _look_up(axis: Axis, indices: Label) -> None:
    """Note that integers pick positions of an axis: harmless if they move with it, such as experts chosen by name."""
    if indices.indexes is None:
        fix(axis)
    else:
        unify(axis, indices.indexes)


@rule("topk", "max", "min", "argmax", "sort")
def _extremes(tracer: AxisTracer, call: _Call) -> list[Label] | None:
    if call.argument("dim") is None or len(call.inputs) != 1:
        return None
    dimension = call.dimension()
    labels = []
    for shape in call.shapes:
        left = shape[dimension : dimension + 1] if len(shape) == len(call.axes) else ()
        axes = (*call.axes[:dimension], *(new_axis(n, fixed=True) for n in left), *call.axes[dimension + 1 :])
        labels.append(Label(axes))
    labels[-1] = Label(labels[-1].axes, call.axes[dimension])
    return labels


@rule("mean", "sum", "amax", "amin", "var", "std", "any", "all", "logsumexp", "linalg_vector_norm", "norm", "prod")
def _reduction(tracer: AxisTracer, call: _Call) -> list[Label] | None:
    names = {parameter.name for parameter in call.func._schema.arguments}
    gone = set(call.dimensions()) if "dim" in names else set(range(len(call.axes)))
    keep = bool(call.argument("keepdim", False))
    axes = [() if d in gone else axis for d, axis in enumerate(call.axes) if keep or d not in gone]
    return [Label(tuple(axes)) for _ in call.shapes]


@rule("_softmax", "_log_softmax", "_safe_softmax")
def _softmax(tracer: AxisTracer, call: _Call) -> list[Label]:
    return [Label(call.axes)]


@rule("native_layer_norm")
def _layer_norm(tracer: AxisTracer, call: _Call) -> list[Label]:
    normed = len(call.argument("normalized_shape"))
    kept = call.axes[: len(call.axes) - normed]
    statistics = Label((*kept, *((),) * normed))
    return [_broadcast(call.inputs, call.shapes[0]), statistics, statistics]


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _batch_norm(tracer: AxisTracer, call: _Call) -> list[Label] | None:
    for label in call.inputs[1:]:
        unify(call.axes[1], label.axes[0])
    return [Label(call.axes), *(Label(tuple(new_axis(n, fixed=True) for n in s)) for s in call.shapes[1:])]


@rule("convolution")
def _convolution(tracer: AxisTracer, call: _Call) -> list[Label] | None:
    """Channels are neurons; places keep their order."""
    weight, groups = call.inputs[1], call.argument("groups")
    tracer.read(weight, 1)
    if groups == 1 and not call.argument("transposed"):
        unify(call.axes[1], weight.axes[1])
    elif groups == size_of(call.axes[1]) == size_of(weight.axes[0]):
        unify(call.axes[1], weight.axes[0])
    else:
        return None
    for axis in (*call.axes[2:], *weight.axes[2:]):
        fix(axis)
    for bias in call.inputs[2:]:
        unify(bias.axes[0], weight.axes[0])
    places = [new_axis(size, fixed=True) for size in call.shapes[0][2:]]
    return [Label((call.axes[0], weight.axes[0], *places))]


@rule("adaptive_avg_pool2d", "_adaptive_avg_pool2d", "avg_pool2d", "max_pool2d_with_indices")
def _pool(tracer: AxisTracer, call: _Call) -> list[Label]:
    for axis in call.axes[2:]:
        fix(axis)
    return [Label((*call.axes[:2], *(new_axis(n, fixed=True) for n in shape[2:]))) for shape in call.shapes]
