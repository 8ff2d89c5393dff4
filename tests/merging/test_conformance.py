"""Every merge method that ships passes the public conformance suite."""

import pytest

from evomerge.errors import EvomergeError, MergeError, UnknownNameError
from evomerge.merging import METHODS, Parameter, merge_method
from evomerge.testing.merge_methods import MergeMethodTestCase, draw

WEIGHT = Parameter("weight", 0.5, 0.0, 1.0, per_model=True, searchable=True, description="share")
ABOUT = {"summary": "s", "paper": "p", "formula": "f", "needs_base": False, "kind": "elementwise"}


class TestShippedMethods(MergeMethodTestCase):
    @pytest.fixture(params=list(METHODS))
    def method(self, request):
        return METHODS[request.param]


def test_the_methods_of_this_release_are_there():
    shipped = {"linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "passthrough"}
    assert shipped <= set(METHODS)


def test_unknown_method_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'dare_ties'"):
        METHODS["dare-ties"]


def test_registration_whose_arguments_disagree_names_function_and_file():
    def crooked(tensors, base, *, wait):
        return tensors[0]

    with pytest.raises(EvomergeError, match=r"crooked in .*test_conformance.py takes .*'wait'.* says .*'weight'"):
        merge_method("crooked", parameters=(WEIGHT,), **ABOUT)(crooked)
    assert "crooked" not in METHODS


def test_unknown_and_missing_parameters_are_refused_in_python_too():
    with pytest.raises(MergeError, match="linear has no parameter 'wight'; it has weight, normalize"):
        METHODS["linear"](draw(2), wight=0.5)
    with pytest.raises(MergeError, match="linear needs the parameter 'weight'"):
        METHODS["linear"](draw(2))


def test_methods_on_task_vectors_need_a_base():
    with pytest.raises(MergeError, match="name one as base_model"):
        METHODS["task_arithmetic"](draw(2), weight=0.5)
