"""Fewer combinations of parameters where each is a program to compile: still every two values together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any
from zlib import crc32

import pytest


def pairwise(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """Leave out parametrized tests of which every two parameters occur together in a test that stays.

    A fault seldom needs more than two parameters to show. Tests of two parameters, and of one, all stay. The order is
    mixed, the same in each process, so that what stays does not have the same third parameter everywhere.
    """
    seen = set[Any]()
    for item in sorted(items, key=lambda item: crc32(item.nodeid.encode())):
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        varied = [(name, repr(value)) for name, value in sorted(parameters.items()) if name != "backend"]
        test = (item.path, getattr(item, "originalname", item.name), parameters.get("backend"))
        pairs = {(test, pair) for pair in combinations(varied, 2)}
        if len(varied) < 3 or not pairs <= seen:
            yield item
        seen |= pairs
