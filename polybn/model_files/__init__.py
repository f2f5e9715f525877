"""Model files of other frameworks, read without running any code in them, and written.

:func:`read` finds the batch norms of a model; each file format is a module of its own.
"""

from polybn.model_files.errors import ModelFileError
from polybn.model_files.model import Model, Norm
from polybn.model_files.reading import read

__all__ = ["Model", "ModelFileError", "Norm", "read"]
