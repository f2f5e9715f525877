"""Channel statistics of data that come in parts: an accumulator, and ``polybn stats`` for data sets on disk."""
