"""Draws are uniform, independent between tensors, and the same whatever chunks they are read in."""

import pytest
import torch

from evomerge.merging.draws import BITS, draws, limit, table


def test_chunks_read_the_same_draws_as_the_whole_even_around_the_end_of_the_table():
    drawn = draws((1 << BITS) - 1000)
    whole = drawn.cut(0, 5000)
    assert torch.equal(torch.cat([drawn.cut(start, start + 500) for start in range(0, 5000, 500)]), whole)
    assert torch.equal(whole[1000:], table()[:4000])
    assert drawn.cut(0, (2 << BITS) + 5).numel() == (2 << BITS) + 5


@pytest.mark.parametrize("probability", [0.0, 1e-4, 0.1, 0.5, 0.9, 0.9999, 1.0])
def test_the_share_below_a_limit_is_its_probability(probability):
    share = float((table().int() < limit(probability)).double().mean())
    assert abs(share - probability) < 4 * (probability * (1 - probability) / (1 << BITS)) ** 0.5 + 1 / (1 << 16)


def test_draws_of_two_seeds_are_uncorrelated():
    first, second = (draws(seed).cut(0, 1 << 20).double() for seed in (12345, 67890))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 / (1 << 10)
