"""Adapters: one small module per library, imported when it is asked for.

An adapter converts NumPy arrays to the library's and back, declares the library's conventions, and calls
what the library's users call, with the library's defaults for the algorithm. It computes nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from polybn.conformance.adapters.here import import_module
from polybn.dispatch import installed
from polybn.near import did_you_mean, near
from polybn.spec import DomainError, DTypeError

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter

ADAPTERS = {
    "pytorch": "polybn.conformance.adapters.pytorch:PyTorch",
    "pytorch-channels-last": "polybn.conformance.adapters.pytorch:channels_last",
    "flax-linen": "polybn.conformance.adapters.flax:Linen",
    "flax-nnx": "polybn.conformance.adapters.flax:NNX",
    "jax-standardize": "polybn.conformance.adapters.jax:Standardize",
    "keras-numpy": "polybn.conformance.adapters.keras:on_numpy",
    "keras-torch": "polybn.conformance.adapters.keras:on_torch",
    "mxnet": "polybn.conformance.adapters.mxnet:MXNet",
    "onnxruntime": "polybn.conformance.adapters.onnxruntime:OnnxRuntime",
    "onnx-reference": "polybn.conformance.adapters.onnx:Reference",
}
"""Adapters of other libraries, as ``"module:Class"`` by name. A process can make only one of the two for Keras."""


def resolve(adapter: str) -> Adapter:
    """Make an adapter from its name or its path.

    Parameters
    ----------
    adapter : str
        A key of :data:`~polybn.conformance.adapters.ADAPTERS`; ``"polybn-NAME"`` for any installed backend of
        PolyBN, ``"polybn-NAME-FORM"`` for one of the forms that it declares, such as ``"polybn-jax-jit"``; or
        ``"package.module:Class"``, and the class is called without arguments. The module may lie in the working
        directory.

    Returns
    -------
    Adapter
        See :class:`polybn.conformance.adapter.Adapter`.

    Raises
    ------
    DomainError
        If the name is unknown, or the module has nothing by that name.
    DTypeError
        If the object that was made lacks ``info`` or ``train``.
    ImportError
        If the module, or a library that the adapter needs, is missing; the message says what to install.

    Examples
    --------
    >>> from polybn.conformance.adapters import resolve
    >>> resolve("polybn-numpy").info().momentum
    'old'
    """
    if adapter.startswith("polybn-"):
        from polybn.conformance.adapters.backend import BackendAdapter

        name, _, form = adapter.removeprefix("polybn-").partition("-")
        return BackendAdapter(name, form)
    path = ADAPTERS.get(adapter, adapter)
    module_name, colon, attribute = path.partition(":")
    if not (colon and module_name and attribute):
        names = [*ADAPTERS, *(f"polybn-{name}" for name in installed())]
        raise DomainError(
            f"polybn.conformance.resolve: adapter must be one of {', '.join(ADAPTERS)}, 'polybn-NAME', or "
            f"'package.module:Class'; got {adapter!r} ({did_you_mean(near(adapter, names))}what one is: "
            "polybn.conformance.Adapter)"
        )
    try:
        make = getattr(import_module(module_name), attribute, None)
    except ModuleNotFoundError as error:
        if not module_name.endswith(".py") or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        module = module_name.removesuffix(".py").replace("\\", ".").replace("/", ".").strip(".")
        raise DomainError(
            f"polybn.conformance.resolve: adapter must name a module, not a file; got {adapter!r} "
            f"(a module is named without .py: {module}:{attribute})"
        ) from None
    if make is None:
        raise DomainError(
            f"polybn.conformance.resolve: adapter must name something in its module; got {adapter!r} "
            f"(module {module_name} has no {attribute})"
        )
    return _fitting(adapter, make())


def _fitting(adapter: str, made: object) -> Adapter:
    missing = [name for name in ("info", "train") if not hasattr(made, name)]
    if missing:
        raise DTypeError(
            f"polybn.conformance.resolve: adapter must have the methods info and train; {adapter!r} made "
            f"{type(made).__name__} without {', '.join(missing)} (see polybn.conformance.Adapter)"
        )
    return cast("Adapter", made)
