"""Laws of the map between genomes and the unit box."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evomerge.search_spaces.genes import ChoiceGene, FloatGene, IntGene
from evomerge.searchers.box import UnitBox

bounds = st.tuples(*[st.floats(-1e6, 1e6, allow_subnormal=False)] * 2).map(sorted)
float_genes = bounds.map(lambda b: FloatGene("float", b[0], b[1], b[0]))
int_genes = st.tuples(st.integers(-50, 50), st.integers(0, 90)).map(lambda b: IntGene("int", b[0], b[0] + b[1], b[0]))
choice_genes = st.integers(1, 6).map(lambda n: ChoiceGene("choice", tuple("abcdef"[:n]), "a"))
spaces = st.tuples(float_genes, int_genes, choice_genes)


@given(spaces, st.data())
def test_every_point_has_a_genome_inside_the_bounds(genes, data):
    box = UnitBox(genes)
    coordinates = st.lists(st.floats(-0.5, 1.5), min_size=box.dimensions, max_size=box.dimensions)
    genome = box.genome(np.array(data.draw(coordinates)))
    number, integer, choice = genes
    assert number.low <= genome["float"] <= number.high
    assert integer.low <= genome["int"] <= integer.high
    assert genome["choice"] in choice.choices


@given(spaces, st.data())
def test_a_genome_is_found_again_at_its_point(genes, data):
    number, integer, choice = genes
    genome = {
        "float": data.draw(st.floats(number.low, number.high)),
        "int": data.draw(st.integers(integer.low, integer.high)),
        "choice": data.draw(st.sampled_from(choice.choices)),
    }
    box = UnitBox(genes)
    found = box.genome(box.point(genome))
    assert abs(found["float"] - genome["float"]) <= 1e-12 * max(1.0, number.high - number.low, abs(number.low))
    assert (found["int"], found["choice"]) == (genome["int"], genome["choice"])


def test_cells_are_equal_and_constant_genes_have_no_coordinate():
    box = UnitBox((IntGene("i", 3, 5, 3), FloatGene("constant", 1.0, 1.0, 1.0), ChoiceGene("c", ("x", "y"), "x")))
    assert box.cells.tolist() == [3, 2]
    grid = (np.arange(600) + 0.5) / 600
    found = [box.genome(np.array([u, u])) for u in grid]
    assert [sum(genome["i"] == value for genome in found) for value in (3, 4, 5)] == [200, 200, 200]
    assert [sum(genome["c"] == value for genome in found) for value in ("x", "y")] == [300, 300]
    assert {genome["constant"] for genome in found} == {1.0}
