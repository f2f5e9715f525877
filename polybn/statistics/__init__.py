"""Channel statistics of data in parts: an accumulator, and ``polybn stats`` for data sets on disk."""
