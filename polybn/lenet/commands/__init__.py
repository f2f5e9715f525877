"""The commands that train LeNet and show the results; :mod:`polybn.cli` makes one program of all commands."""
