"""Layer swapping: which model each layer comes from."""

import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging import METHODS
from evomerge.merging.method import Place

SWAP = METHODS["layer_swap"]
OUTER, INNER = torch.tensor([1.0]), torch.tensor([0.0])


def shares(layers, **values):
    """The share of the first model in each layer."""
    return [float(SWAP([OUTER, INNER], place=Place("x", i, layers, 0.0), **values)) for i in range(layers)]


def test_defaults_are_the_papers_for_32_layers():
    assert shares(32) == [1.0] * 5 + [0.5] + [0.0] * 23 + [0.5] + [1.0] * 2


def test_shares_are_rounded_to_whole_layers():
    assert shares(4, bottom=0.25, top=0.25, transition=0.0) == [1.0, 0.0, 0.0, 1.0]
    assert shares(4, bottom=0.25, top=0.25, transition=0.25) == [1.0, 0.5, 0.5, 1.0]
    assert shares(4, bottom=0.1, top=0.3, transition=0.1) == [0.0, 0.0, 0.0, 1.0]
    assert shares(5, bottom=0.5, top=0.0, transition=0.2, mix=0.25) == [1.0, 1.0, 1.0, 0.25, 0.0]


def test_no_seam_where_nothing_is_swapped_in():
    assert shares(4, bottom=0.0, top=0.0, transition=0.5) == [0.0] * 4
    assert shares(4, bottom=0.0, top=0.25, transition=0.5) == [0.0, 0.5, 0.5, 1.0]


def test_outer_layers_win_where_shares_overlap():
    assert shares(4, bottom=0.75, top=0.75, transition=0.5) == [1.0] * 4


def test_what_stands_outside_the_layers_stays_the_second_models():
    place = Place("embed", None, 4, 0.0)
    assert torch.equal(SWAP([OUTER, INNER], place=place), INNER)
    assert float(SWAP([OUTER, INNER], place=place, outside=0.25)) == 0.25
    assert torch.equal(SWAP([OUTER, INNER], place=place, outside=1.0), OUTER)


def test_averages_are_computed_in_float32():
    outer, inner = (torch.tensor([x], dtype=torch.bfloat16) for x in (1.0, 1.0078125))
    merged = SWAP([outer, inner], place=Place("x", 1, 4, 0.0), bottom=0.25, transition=0.25)
    assert merged.item() == 1.00390625


def test_order_matters_and_is_said_to():
    assert SWAP.ordered
    assert (SWAP.min_models, SWAP.max_models) == (2, 2)


def test_unknown_parameters_are_refused():
    with pytest.raises(MergeError, match="layer_swap has no parameter 'middle'"):
        SWAP([OUTER, INNER], middle=0.5)
