"""The commands of batch norm itself; those that train are in ``polybn.lenet.commands``."""
