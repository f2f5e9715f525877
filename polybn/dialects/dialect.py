"""A dialect: its facts, their sources, and the arguments that make PolyBN compute like it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from polybn.dialects.calls import arguments
from polybn.dialects.record import Record
from polybn.spec import DomainError


@dataclass(frozen=True, kw_only=True, eq=False)
class Dialect(Record):
    """The conventions of one implementation of batch norm. The defaults are those of the specification, S1 to S12."""

    def arguments(
        self,
        *,
        momentum: float | None = None,
        eps: float | None = None,
        axis: int | None = None,
        step: int | None = None,
    ) -> dict[str, Any]:
        """Return the keywords that make PolyBN compute as this dialect does.

        Parameters
        ----------
        momentum : float, optional
            Momentum in this dialect's own sense. The default, as for eps and axis, is the dialect's own.
        eps : float, optional
        axis : int, optional
        step : int, optional
            The number of the training step, from 1, on which the momentum of debiased running statistics depends.

        Returns
        -------
        dict
            ``momentum``, as the weight of the old value, ``eps``, ``axis`` and ``running_variance``: keywords of
            :func:`polybn.batch_norm`, :func:`polybn.batch_norm_vjp` and :class:`polybn.BatchNorm`. If
            ``fix_gamma`` is true, also pass ``gamma=None``.

        Raises
        ------
        DomainError
            If no arguments can express the dialect, or an option is out of range.

        Examples
        --------
        >>> from polybn import dialects
        >>> dialects.PYTORCH.arguments(momentum=0.2)
        {'momentum': 0.8, 'eps': 1e-05, 'axis': 1, 'running_variance': 'unbiased'}
        """
        options = {"momentum": momentum, "eps": eps, "axis": axis}
        given = {name: value for name, value in options.items() if value is not None}
        return arguments(self, given, step, f"dialects.{self.name.upper()}.arguments")

    def source_of(self, fact: str) -> str:
        """Return the source of a fact.

        Parameters
        ----------
        fact : str
            The name of a field.

        Returns
        -------
        str
            An address, or a module with its version.

        Raises
        ------
        DomainError
            If there is no such fact.

        Examples
        --------
        >>> from polybn import dialects
        >>> dialects.KERAS3.source_of("empty")
        'seen with keras 3.15.1 on NumPy'
        """
        known = [each.name for each in fields(self)]
        if fact not in known:
            raise DomainError(
                f"polybn.dialects.source_of: fact must be one of {', '.join(known)}; got {fact!r} "
                "(the fields of polybn.dialects.Dialect)"
            )
        return self.sources.get(fact, self.source)

    def facts(self) -> dict[str, Any]:
        """Return all facts by name, without their sources.

        Returns
        -------
        dict
            The fields of the record, in their order.

        Examples
        --------
        >>> from polybn import dialects
        >>> dialects.PYTORCH.facts()["running_variance"]
        'unbiased'
        """
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("source", "sources")}
