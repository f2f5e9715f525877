"""The statistics of a model's batch norms, and faults that they show, as text and as a picture."""

from polybn.inspection.findings import Finding, inspect

__all__ = ["Finding", "inspect"]
