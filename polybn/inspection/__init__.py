"""What the statistics of a model's batch norms tell of it, in words and in a picture."""

from polybn.inspection.findings import Finding, inspect

__all__ = ["Finding", "inspect"]
