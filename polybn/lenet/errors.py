"""The errors of training: data files, checkpoints and losses that cannot be used."""

from __future__ import annotations


class DataIntegrityError(OSError):
    """A data file is missing, damaged or not what it claims to be."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, or belongs to another network, configuration or format version."""


class DivergenceError(ArithmeticError):
    """Training produced a loss that is not a finite number."""
