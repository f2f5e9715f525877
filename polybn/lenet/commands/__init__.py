"""The commands that train LeNet and show what came of it; :mod:`polybn.cli` puts them together."""
