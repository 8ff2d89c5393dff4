"""What reshapes, slices and sums say about axes."""

from evomerge.merging.alignment.axes import (
    Atom,
    concatenate,
    cut_axis,
    fix,
    new_axis,
    reshape,
    resolve,
    size_of,
    unify,
)


def sizes(axis):
    return [atom.size for atom in resolve(axis)]


def parts(axis):
    (atom,) = resolve(axis)
    return [size_of(part) for part in atom.parts]


def test_a_reshape_takes_an_axis_apart():
    axis = new_axis(12)
    rows, columns = reshape([axis], [3, 4])
    assert (size_of(rows), size_of(columns), sizes(axis)) == (3, 4, [3, 4])
    assert reshape([rows, columns], [12])[0] == resolve(axis)


def test_factors_are_refined_on_both_sides():
    one, other = new_axis(24), new_axis(24)
    reshape([one], [4, 6])
    reshape([other], [2, 12])
    unify(one, other)
    assert sizes(one) == sizes(other) == [2, 2, 6]
    assert not any(atom.fixed for atom in resolve(one))


def test_factors_that_do_not_agree_fix_everything():
    one, other = new_axis(24), new_axis(24)
    reshape([one], [3, 8])
    reshape([other], [8, 3])
    unify(one, other)
    assert all(atom.fixed for axis in (one, other) for atom in resolve(axis))


def test_a_reshape_across_a_factor_fixes_it():
    axis = new_axis(12)
    reshape([axis], [3, 4])
    made = reshape([axis], [2, 6])
    assert [atom.fixed for axis in made for atom in axis] == [True, True]
    assert all(atom.fixed for atom in resolve(axis))


def test_a_cut_and_its_joining():
    axis = new_axis(10)
    first, second = cut_axis(axis, 4)
    assert parts(axis) == [4, 6]
    joined = concatenate([first, second])
    unify(joined, axis)
    assert not any(atom.fixed for atom in (*resolve(first), *resolve(second)))


def test_joining_in_another_order_makes_the_parts_one():
    """Rotary embeddings: (first half, second half) times something plus (second half, first half) times another."""
    axis = new_axis(8)
    first, second = cut_axis(axis, 4)
    unify(axis, concatenate([second, first]))
    assert resolve(first) == resolve(second)


def test_cuts_at_different_places_are_refined():
    one, other = new_axis(12), new_axis(12)
    cut_axis(one, 4)
    cut_axis(other, 8)
    unify(one, other)
    assert parts(one) == [4, 4, 4]


def test_a_cut_within_a_product_fixes_it():
    axis = new_axis(12)
    reshape([axis], [3, 4])
    assert cut_axis(axis, 6) is None
    assert all(atom.fixed for atom in resolve(axis))


def test_a_cut_between_rows_of_a_product():
    axis = new_axis(12)
    reshape([axis], [3, 4])
    first, second = cut_axis(axis, 4)
    assert (size_of(first), size_of(second)) == (4, 8)
    assert resolve(first)[-1] is resolve(second)[-1]


def test_fixing_spreads_to_what_is_found_to_be_the_same():
    one, other = new_axis(6), new_axis(6)
    fix(one)
    unify(other, one)
    assert resolve(other)[0].fixed
    parts_ = concatenate([new_axis(2), new_axis(4)])
    unify(parts_, one)
    assert all(atom.fixed for part in resolve(parts_)[0].parts for atom in part)


def test_a_sum_of_rows_is_a_product_of_a_sum():
    """Queries, keys and values that lie one after the other, viewed as heads."""
    axis = concatenate([new_axis(8), new_axis(4), new_axis(4)])
    heads, inner = reshape([axis], [4, 4])
    assert size_of(heads) == 4
    assert size_of(inner) == 4
    assert parts(heads) == [2, 1, 1]
    assert Atom(1).parts is None
