"""The version of PolyBN, a file of its own so that every room can tell it."""

from __future__ import annotations

__version__ = "0.1.0"
