"""Files that other frameworks keep models in: read without running any code of theirs, and written."""
