"""Few forms for libraries that compile are forms that the kit's strategies draw, too, and leave nothing out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polybn.conformance.cases import DTYPES
from tests.support.drawing import EVEN, FORMS, ODD, cases, few_forms, forms, lattices


def test_forms_are_of_unequal_primes_and_hold_what_there_is_to_compile() -> None:
    for form in FORMS:
        assert len({*form.shape}) == len(form.shape)
        assert 1 < math.prod(form.shape) // form.shape[form.axis] <= 400
    assert {(form.dtype, form.training) for form in FORMS} == {(d, t) for d in DTYPES for t in (True, False)}
    assert {len(form.shape) for form in FORMS} == {2, 3, 4, 5}
    assert {name for form in FORMS for name in form.absent} == {"gamma", "beta", "running_mean", "running_var"}
    assert {math.prod(rest) % 4 for rest, _, _ in EVEN} == {0}
    assert {math.prod(rest) for rest, _, _ in ODD} == {5, 9}


@pytest.mark.parametrize("few", [True, False])
def test_values_vary_and_forms_do_only_where_they_may(few: bool) -> None:
    seen, values = set(), set()

    @settings(max_examples=100, database=None)
    @given(st.data())
    def draw(data: st.DataObject) -> None:
        case = data.draw(cases())
        seen.add((case.x.shape, case.axis, case.x.dtype.name, case.training))
        values.add(case.x.tobytes())
        data.draw(lattices(wide=True)), data.draw(lattices(odd=True)), data.draw(lattices(training=False))

    with few_forms(few):
        draw()
    assert (len(seen) <= len(FORMS)) == few
    assert len(values) > 2 * len(FORMS)


def test_combinations_hold_each_member_of_each_pool() -> None:
    seen = set()

    @settings(max_examples=100, database=None)
    @given(forms((1, 2, 3), "ab"))
    def draw(pair: tuple[int, str]) -> None:
        seen.add(pair)

    with few_forms():
        draw()
    assert seen == {(1, "a"), (2, "b"), (3, "a")}
