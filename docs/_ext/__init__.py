"""What the documentation is generated from: docstrings, tests, records and the command line."""
