"""The parts of clause S7 that NumPy can check: read-only inputs, memory, error state, layouts of outputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given

import polybn
from polybn.conformance.cases import Array, Case
from polybn.conformance.strategies import cases, sample


def frozen(case: Case) -> Case:
    """Return the call with read-only inputs."""
    for array in (*case.arrays().values(), case.dy, case.where):
        if array is not None:
            array.flags.writeable = False
    return case


def results(case: Case) -> Iterator[Array]:
    result, pullback = polybn.batch_norm_vjp(*case.arrays().values(), **case.options(), where=case.where)
    alone = polybn.batch_norm(*case.arrays().values(), **case.options(), where=case.where)
    gradients, second = pullback.vjp(case.dy)
    moments = polybn.moments(case.x, axis=case.axis, where=case.where)
    merged = (
        polybn.merge_moments(moments, polybn.moments(case.x[:0], axis=case.axis))
        if case.axis % case.x.ndim
        else moments
    )
    groups = [result, alone, pullback(case.dy), gradients, second(gradients), moments, merged]
    if case.running_mean is not None and case.running_var is not None:
        groups.append(polybn.fold(case.gamma, case.beta, case.running_mean, case.running_var))
    for group in groups:
        yield from (array for array in group if array is not None)


@pytest.mark.clause("S7")
@given(case=cases())
def test_outputs_share_no_memory(case: Case) -> None:
    """Read-only inputs are accepted; every output is writable, and overlaps no input and no other output."""
    case = frozen(case)
    inputs = [a for a in (*case.arrays().values(), case.dy) if a is not None]
    outputs = list(results(case))
    for i, output in enumerate(outputs):
        assert output.flags.writeable
        assert output.flags.owndata or output.base is not None
        for other in inputs:
            assert not np.shares_memory(output, other)
        for other in outputs[:i]:
            assert output is other or not np.shares_memory(output, other)


@pytest.mark.clause("S7")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_running_statistics_are_copies(training: bool, momentum: float) -> None:
    """Unchanged running statistics are copies, too: writing to them does not change the caller's."""
    case = sample(1, "float32", (7, 3, 5), training=training, momentum=momentum)
    for shape in (case.x.shape, (0, 3, 5)):
        result = polybn.batch_norm(case.x[: shape[0]], *list(case.arrays().values())[1:], **case.options())
        for old, new in ((case.running_mean, result.running_mean), (case.running_var, result.running_var)):
            assert old is not None
            assert new is not None
            before = old.copy()
            new[...] = -1
            assert np.array_equal(old, before)


@pytest.mark.clause("S7", "S10")
@pytest.mark.parametrize("training", [True, False])
def test_error_state_of_the_caller(training: bool) -> None:
    """Under ``np.errstate(all="raise")`` a call raises no FloatingPointError: overflow and NaN are defined results."""
    case = sample(2, "float32", (7, 3, 5), training=training)
    x = case.x.copy()
    x[:, 0] *= np.float32(1e30)
    x[0, 1], x[:, 2] = np.nan, 1e-30
    assert case.running_mean is not None
    assert case.running_var is not None
    largest = np.array([3e38, 1, 1e-38], np.float32)
    with np.errstate(all="raise"):
        list(results(case._replace(x=x, running_mean=largest, running_var=largest, eps=8e37)))
        list(results(case._replace(x=x, running_mean=largest, running_var=largest[::-1].copy(), eps=0.0)))


@pytest.mark.clause("S1")
@pytest.mark.parametrize("order", ["C", "F"])
def test_output_has_the_layout_of_x(order: str) -> None:
    """y and dx have the strides of x, if x is contiguous in any order."""
    case = sample(3, "float32", (7, 3, 5, 2))
    x = np.asarray(case.x, order=order)  # type: ignore[call-overload]
    for array in (x, np.moveaxis(x, 3, 1)):
        axis = array.shape.index(3)
        result, pullback = polybn.batch_norm_vjp(array, training=True, axis=axis)
        assert result.y.strides == array.strides
        assert pullback(array).x.strides == array.strides


@pytest.mark.clause("S7")
def test_memory_maps(tmp_path: object) -> None:
    """A read-only memory map gives the results of an array with its values."""
    case = sample(4, "float32", (7, 3, 5))
    path = f"{tmp_path}/x.npy"
    np.save(path, case.x)
    mapped = np.load(path, mmap_mode="r")
    assert np.array_equal(polybn.batch_norm(mapped, training=True).y, polybn.batch_norm(case.x, training=True).y)
