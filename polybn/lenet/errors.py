"""The errors of training: data files, checkpoints, run directories and losses that cannot be used."""

from __future__ import annotations


class DataIntegrityError(OSError):
    """A data file is missing, damaged or not what it claims to be."""


class CheckpointError(ValueError):
    """A file of a run is damaged, or belongs to another network, configuration or format version."""


class RunInUseError(BlockingIOError):
    """Another process is training in this directory."""


class DivergenceError(ArithmeticError):
    """Training produced a loss or a weight that is not a finite number."""
