"""What a backend returns is checked where it comes back: None, tuples of other lengths, and arrays of other forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polybn
from polybn import conformance
from polybn.conformance.adapters.backend import BackendAdapter
from polybn.spec import BackendError, Gradients, Moments

pytestmark = pytest.mark.clause("S14")

X, ONE = np.ones((4, 3), np.float32), np.ones(3, np.float32)
WHOLE = Moments(np.ones(3, np.int64), ONE, ONE, ONE)
CALLS: dict[str, Callable[[], Any]] = {
    "moments": lambda: polybn.moments(X),
    "merge_moments": lambda: polybn.merge_moments(WHOLE, WHOLE),
    "fold": lambda: polybn.fold(ONE, ONE, ONE, ONE),
    "batch_norm": lambda: polybn.batch_norm(X, ONE, training=True),
    "batch_norm_vjp": lambda: polybn.batch_norm_vjp(X, ONE, training=True)[1](X),
}


def refused(monkeypatch: pytest.MonkeyPatch, function: str, method: str, made: Any) -> str:
    monkeypatch.setattr(polybn.backend("numpy"), method, lambda *args, **options: made)
    with pytest.raises(BackendError) as info:
        CALLS[function]()
    start, _, rest = str(info.value).partition(" must return ")
    assert start == f"polybn.{function}: {method} of the backend 'numpy'"
    assert rest.endswith(f"(polybn.spec.Backend.{method} says what; the fault is the backend's, not the caller's)")
    return rest.partition(" (polybn.spec.Backend")[0]


@pytest.mark.parametrize(
    ("function", "method", "wanted"),
    [
        ("moments", "moments", "a polybn.spec.Moments (count, mean, m2, low)"),
        ("merge_moments", "merge_moments", "a polybn.spec.Moments (count, mean, m2, low)"),
        ("fold", "fold", "a polybn.spec.Affine (scale, shift)"),
        ("batch_norm_vjp", "backward", "a polybn.spec.Gradients (x, gamma, beta, running_mean, running_var)"),
        ("batch_norm", "forward", "a pair, a polybn.spec.BatchNormResult and residuals"),
        ("batch_norm_vjp", "forward", "a pair, a polybn.spec.BatchNormResult and residuals"),
    ],
)
@pytest.mark.parametrize(("made", "got"), [(None, "NoneType"), ((ONE,) * 3, "tuple of 3"), ([ONE], "list of 1")])
def test_what_is_no_record_is_named(
    monkeypatch: pytest.MonkeyPatch, function: str, method: str, wanted: str, made: Any, got: str
) -> None:
    assert refused(monkeypatch, function, method, made) == f"{wanted}; got {got}"


def test_a_result_that_is_none_beside_residuals_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "a polybn.spec.BatchNormResult (y, running_mean, running_var); got NoneType"
    assert refused(monkeypatch, "batch_norm", "forward", (None, None)) == wanted


@pytest.mark.parametrize("function", ["moments", "merge_moments"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mean": None}, "mean with shape (3,) and dtype float32; got NoneType"),
        ({"m2": [1.0] * 3}, "m2 with shape (3,) and dtype float32; got list"),
        ({"m2": ONE[:2]}, "m2 with shape (3,) and dtype float32; got shape (2,) and dtype float32"),
        ({"low": ONE.astype(float)}, "low with shape (3,) and dtype float32; got shape (3,) and dtype float64"),
        ({"count": ONE}, "count with shape (3,) and an integer dtype; got shape (3,) and dtype float32"),
    ],
)
def test_a_field_of_another_form_is_named(
    monkeypatch: pytest.MonkeyPatch, function: str, fields: dict[str, Any], words: str
) -> None:
    assert refused(monkeypatch, function, function, WHOLE._replace(**fields)) == words


def test_none_for_low_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polybn.backend("numpy"), "moments", lambda arguments: WHOLE._replace(low=None))
    assert polybn.moments(X).low is None


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (None, "backward of the backend 'numpy' must return a polybn.spec.Gradients (x, gamma, beta, running_mean, "
               "running_var); got NoneType"),
        (Gradients(X, None, ONE), "dgamma must be a plain array of the backend's library; got NoneType"),
    ],
)  # fmt: skip
def test_the_report_says_what_a_backend_returned(monkeypatch: pytest.MonkeyPatch, made: Any, words: str) -> None:
    adapter = BackendAdapter("numpy")
    monkeypatch.setattr(polybn.backend("numpy"), "backward", lambda *args, **options: made)
    report = conformance.check(adapter, only=["P3"], seed=1, dtypes=["float32"])
    assert report.advice.startswith("P3: PolyBN on numpy.vjp raised polybn.spec.BackendError: ")
    assert words in report.advice
