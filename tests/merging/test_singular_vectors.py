"""Decompositions that are the same wherever a matrix is of low rank."""

import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging.singular_vectors import is_matrix, on_matrices, polar, svd


def low_rank(rows, columns, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1)], ids=str)
def test_factors_give_the_matrix(shape):
    matrix = low_rank(*shape, 6)
    u, s, vh = svd(matrix)
    assert u.shape == (shape[0], min(shape))
    assert vh.shape == (min(shape), shape[1])
    assert torch.allclose((u * s) @ vh, matrix, atol=1e-5)
    assert torch.equal(s, s.sort(descending=True).values)


def test_directions_of_singular_value_zero_are_zero():
    u, s, vh = svd(low_rank(9, 8, 3))
    assert (s > 0).sum() == 3
    assert not u[:, 3:].any()
    assert not vh[3:].any()
    assert not any(factor.any() for factor in svd(torch.zeros(4, 3)))


def test_what_rounding_left_of_a_larger_matrix_is_zero():
    left = low_rank(9, 8, 8) * 1e-7
    assert svd(left).s.any()
    assert not svd(left, size=torch.tensor(10.0)).s.any()


def test_half_precision_is_decomposed_in_float32():
    matrix = low_rank(6, 5, 5).bfloat16()
    assert svd(matrix).u.dtype == torch.float32
    assert torch.equal(svd(matrix).s, svd(matrix.float()).s)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)], ids=str)
def test_polar_is_the_nearest_with_orthonormal_columns_or_rows(shape):
    matrix = low_rank(*shape, 6)
    nearest = polar(matrix)
    gram = nearest.T @ nearest if shape[0] >= shape[1] else nearest @ nearest.T
    assert torch.allclose(gram, torch.eye(min(shape)), atol=1e-5)
    symmetric = nearest.T @ matrix
    assert torch.allclose(symmetric, symmetric.T, atol=1e-4)  # with that, no rotation brings it nearer


def test_polar_of_equal_columns_shares_them_out():
    column = torch.tensor([[3.0], [4.0]])
    assert torch.allclose(polar(torch.cat([column, column], 1)), torch.cat([column, column], 1) / 5 / 2**0.5)


def test_what_counts_as_a_matrix():
    assert is_matrix(torch.zeros(3, 2))
    assert is_matrix(torch.zeros(3, 8, 9))
    for shape in [(), (4,), (0, 4), (3, 8, 7), (3, 1, 4), (2, 3, 8, 8), (0, 8, 8)]:
        assert not is_matrix(torch.zeros(shape))


def test_stacks_are_taken_apart_and_put_together():
    first, second = low_rank(12, 9, 4).reshape(3, 4, 9), low_rank(12, 9, 4, seed=1).reshape(3, 4, 9)
    summed, product = on_matrices(lambda pair: [pair[0] + pair[1], pair[0] @ pair[1].T], [first, second])
    assert torch.equal(summed, first + second)
    assert torch.equal(product, torch.stack([a @ b.T for a, b in zip(first, second, strict=True)]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(MergeError, match="entries that are not finite"):
        svd(torch.tensor([[1.0, bad], [0.0, 1.0]]))
