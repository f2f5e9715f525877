"""All properties that the kit asks of a batch norm, the plainest first, so that the first failure is the first to mend.

P are plain demands, R are about sums that leave the range of the dtype, and G tries the range from end to end.

Missing ids are properties that cannot be asked of an adapter. P20 (defaults) and P32 (merging moments) are about
functions that an adapter does not have; P30 and P31 are about the kit's own oracle and tests; and P41, that two
implementations agree, follows from P22: two results within their bounds of one exact number differ by at most
the sum of the bounds.
"""

from polybn.conformance.properties import (
    behaviour,
    divisor,
    exact,
    extremes,
    influence,
    layouts,
    symmetries,
    whole_range,
    within_bounds,
)
from polybn.conformance.properties.property import Property


def _key(p: Property) -> tuple[int, int, str]:
    digits = "".join(filter(str.isdigit, p.id))
    return "PRG".index(p.id[0]), int(digits), p.id


PROPERTIES: tuple[Property, ...] = tuple(
    sorted(
        (
            p
            for module in (
                divisor,
                exact,
                symmetries,
                layouts,
                behaviour,
                influence,
                within_bounds,
                extremes,
                whole_range,
            )
            for p in module.PROPERTIES
        ),
        key=_key,
    )
)

__all__ = ["PROPERTIES", "Property"]
