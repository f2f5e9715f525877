"""Derivatives as functions: the pullback of one call, and the pullback of that pullback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polybn import returned
from polybn.arguments import check_cotangents, check_dy, check_record, describe_arrays
from polybn.dispatch import backend
from polybn.options import check_own
from polybn.spec import Arguments, BackendError, Description, Gradients, SecondGradients, traits_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from polybn.spec import Array


class Pullback:
    """The derivative of one call of :func:`polybn.batch_norm_vjp`, as a function of the cotangent of ``y``.

    Call it as often as you like; it copies and pickles as its arrays do. It may hold references to the arrays of
    the call rather than copies: do not write into them before it has run.
    """

    def __init__(self, name: str, arguments: Arguments, residuals: Any) -> None:
        self._name, self._arguments, self._residuals = name, arguments, residuals

    def __call__(self, dy: Array, /, **own: Any) -> Gradients:
        """Map a cotangent of ``y`` to cotangents of the arguments.

        Parameters
        ----------
        dy : array, shape (N, C, ...)
            Shape and dtype of ``y``.
        **own
            Keywords of one library only: ``out=`` for NumPy arrays.

        Returns
        -------
        Gradients
            ``x`` in shape and dtype of ``x``; the others with shape ``(C,)``, in the dtype of the statistics.

        Raises
        ------
        BackendError, ShapeError, DTypeError
            If ``dy`` is not an array of the backend with the shape and dtype of ``y``.
        """
        module = backend(self._name)
        x, described = describe_arrays("batch_norm_vjp", module, ("x", "dy"), (self._arguments.x, dy))
        assert x is not None
        check_dy(described, x)
        if own:
            check_own("batch_norm_vjp", own, traits_of(module).own_of_pullback)
        backward: Callable[..., Gradients] = module.backward
        made = backward(self._arguments, self._residuals, dy, **own)
        return returned.check_record("batch_norm_vjp", module, "backward", made, Gradients)

    def vjp(self, dy: Array, /) -> tuple[Gradients, SecondPullback]:
        """Return the gradients for ``dy``, and the pullback of the map from ``dy`` and the arguments to them.

        Parameters
        ----------
        dy : array, shape (N, C, ...)
            Shape and dtype of ``y``.

        Returns
        -------
        Gradients
            The gradients, as from a call.
        SecondPullback
            Maps cotangents of the gradients to :class:`polybn.SecondGradients`.

        Raises
        ------
        BackendError, ShapeError, DTypeError
            As in a call, or if the backend has no second derivatives.
        """
        if not hasattr(backend(self._name), "double_backward"):
            raise BackendError(
                f"polybn.batch_norm_vjp: backend must have second derivatives for vjp; got {self._name!r} "
                "(it has no double_backward; differentiate twice with the library's own means)"
            )
        return self(dy), SecondPullback(self._name, self._arguments, self._residuals, dy)


class SecondPullback:
    """The derivative of a pullback: from cotangents of :class:`polybn.spec.Gradients` to cotangents of its arguments.

    With ``a`` the cotangent of dx, ``b`` of dgamma, ``c`` of dbeta, ``q_z = mean(z * xhat)`` and
    ``P(z) = z - mean(z) - xhat * q_z``, which is symmetric, training gives::

        of dy     = gamma r P(a) + b xhat + c
        of gamma  = r sum(a P(g))
        of x      = r P(h) - gamma r^2 xhat sum(a P(g)) / m,   h = b g - gamma r (q_g a + q_a g)

    by differentiating ``gamma r sum(a P(g)) + b sum(g xhat) + c sum(g)`` first at fixed r and xhat, then
    through them. Inference, with ``e`` and ``f`` the cotangents of drunning_mean and drunning_var::

        of dy            = gamma r a + b xhat + c - gamma r e - gamma r^2 xhat f / 2
        of x             = r g (b - gamma r^2 f / 2)
        of gamma         = sum(g (r a - r e - r^2 xhat f / 2))
        of running_mean  = -sum(of x)
        of running_var   = -r^2 / 2 sum(g (gamma r a + b xhat - gamma r e - 3/2 gamma r^2 xhat f))
    """

    def __init__(self, name: str, arguments: Arguments, residuals: Any, dy: Array) -> None:
        self._name, self._arguments, self._residuals, self._dy = name, arguments, residuals, dy

    def __call__(self, cotangents: Gradients, /) -> SecondGradients:
        """Map cotangents of the gradients to cotangents of ``dy`` and the arguments.

        Parameters
        ----------
        cotangents : Gradients
            Each of the shape of its gradient; None stands for 0.

        Returns
        -------
        SecondGradients

        Raises
        ------
        BackendError, ShapeError, DTypeError, DomainError
            If a cotangent does not fit the gradient that it belongs to.
        """
        module, arguments = backend(self._name), self._arguments
        check_record("batch_norm_vjp", "cotangents", cotangents, Gradients)
        named = {f"the cotangent of {name}": value for name, value in cotangents._asdict().items()}
        described = describe_arrays("batch_norm_vjp", module, named, named.values())
        given = dict(zip(Gradients._fields, described, strict=True))
        held = {"x": arguments.x, "gamma": arguments.gamma, "beta": arguments.beta}
        statistics = None if arguments.training else Description((arguments.channels,), arguments.dtype)
        expected = dict(zip(held, describe_arrays("batch_norm_vjp", module, held, held.values()), strict=True))
        check_cotangents(expected | {"running_mean": statistics, "running_var": statistics}, given)
        made = module.double_backward(arguments, self._residuals, self._dy, cotangents)
        return returned.check_record("batch_norm_vjp", module, "double_backward", made, SecondGradients)
