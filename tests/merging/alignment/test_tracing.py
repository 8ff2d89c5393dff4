"""What single operations say about the axes of their inputs."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from evomerge.merging.alignment.axes import resolve
from evomerge.merging.alignment.tracing import AxisTracer


def traced(function, *shapes, dtype=torch.float32):
    """Run a function on tensors without data; return the labels of its inputs and of its output, and the tracer."""
    with FakeTensorMode() as fake:
        tensors = [torch.empty(shape, dtype=dtype) for shape in shapes]
        tracer = AxisTracer()
        for number, tensor in enumerate(tensors):
            tracer.enter(str(number), tensor)
        with fake, tracer, torch.no_grad():
            out = function(*tensors)
        return [tracer.label(tensor) for tensor in tensors], tracer.label(out), tracer


def same(one, other):
    return resolve(one) == resolve(other)


def free(axis):
    return not any(atom.fixed for atom in resolve(axis))


def test_a_product_sums_over_one_axis():
    (x, w), out, tracer = traced(lambda x, w: torch.nn.functional.linear(x, w), (5, 3), (4, 3))
    assert same(x.axes[1], w.axes[1])
    assert same(out.axes[1], w.axes[0])
    assert all(map(free, (*x.axes, *w.axes)))
    assert ("1", 1) in tracer.reads
    assert ("1", 0) not in tracer.reads


def test_looking_up_rows_fixes_them():
    (table,), out, _ = traced(
        lambda table: torch.nn.functional.embedding(torch.zeros(4, dtype=torch.long), table), (7, 3)
    )
    assert not free(table.axes[0])
    assert free(table.axes[1])
    assert same(out.axes[1], table.axes[1])


def test_rows_chosen_among_themselves_stay_free():
    """A router picks experts: if its rows move with the experts, nothing changes."""

    def route(x, router, experts):
        chosen = torch.topk(x @ router.T, 2, dim=-1).indices
        return experts[chosen.reshape(-1)]

    (_, router, experts), _, _ = traced(route, (5, 3), (6, 3), (6, 4))
    assert same(router.axes[0], experts.axes[0])
    assert free(experts.axes[0])


def test_arithmetic_on_chosen_positions_fixes_them():
    def route(x, experts):
        return experts[(torch.topk(x, 2, dim=-1).indices + 1).reshape(-1)]

    (x, experts), _, _ = traced(route, (5, 6), (7, 4))
    assert not free(x.axes[1])
    assert not free(experts.axes[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.cumsum(1),
        lambda x: x.flip(1),
        lambda x: x[:, ::2],
        lambda x: x[:, 2],
        lambda x: x + torch.arange(6.0),
        lambda x: torch.nn.functional.pad(x, (1, 0)),
    ],
)
def test_what_looks_at_positions_fixes_them(function):
    (x,), _, _ = traced(function, (5, 6))
    assert not free(x.axes[1])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.softmax(x, 1),
        lambda x: x.mean(1, keepdim=True) * x,
        lambda x: torch.nn.functional.layer_norm(x, (6,)),
        lambda x: torch.nn.functional.gelu(x) + 1,
        lambda x: x.to(torch.float64),
        lambda x: x[:, :6],
        lambda x: x.clone().mul_(2),
    ],
)
def test_what_treats_all_positions_alike_leaves_them_free(function):
    (x,), out, _ = traced(function, (5, 6))
    assert all(map(free, x.axes))
    assert same(out.axes[1], x.axes[1])


def test_a_convolution_has_channels_and_places():
    (x, w), out, tracer = traced(lambda x, w: torch.nn.functional.conv2d(x, w), (1, 3, 8, 8), (4, 3, 2, 2))
    assert same(x.axes[1], w.axes[1])
    assert same(out.axes[1], w.axes[0])
    assert [free(axis) for axis in w.axes] == [True, True, False, False]
    assert ("1", 1) in tracer.reads


def test_a_fused_product_of_two_halves():
    """Gated MLPs with gate and up in one matrix."""

    def gated(x, fused, down):
        gate, up = (x @ fused.T).chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up) @ down.T

    (_, fused, down), _, _ = traced(gated, (5, 3), (8, 3), (3, 4))
    (atom,) = resolve(fused.axes[0])
    gate, up = atom.parts
    assert same(gate, up)
    assert same(gate, down.axes[1])
    assert free(gate)
