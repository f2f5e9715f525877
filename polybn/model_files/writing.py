"""Writing of batch norm states to files of other frameworks, under the names that their users expect."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polybn.atomic import StrPath, write_atomic
from polybn.dialects import DIALECTS, convert, find
from polybn.dialects.options import convert_given
from polybn.dialects.said import to_old
from polybn.model_files import flax, gluon, note, safetensors
from polybn.model_files.errors import ModelFileError, of_layer
from polybn.model_files.model import Norm
from polybn.near import did_you_mean, near
from polybn.spec import DomainError

if TYPE_CHECKING:
    from polybn.dialects import Dialect
    from polybn.model_files.model import Model
    from polybn.model_files.tensors import Array

ENDINGS = (".safetensors", ".npz", ".msgpack", ".params")
"""The possible endings of written files, which select the format."""
SEPARATORS = {"keras3": "/", "tf_fused": "/", "flax_linen": "/", "flax_nnx": "/", "haiku": "/", "chainer": "/"}
"""The separator between a layer and its arrays in these dialects; all others use a dot."""
STATISTICS = {"mean", "var"}


class Converted(NamedTuple):
    """The converted batch norms of a model."""

    norms: list[Norm]
    """The batch norms in the words of the target."""
    notes: list[tuple[str, tuple[str, ...]]]
    """For each inexact step, a sentence and the layers that it is about."""


def convert_norms(
    model: Model,
    target: Dialect | str,
    *,
    source: Dialect | str | None = None,
    counts: Mapping[str, int] | None = None,
    options: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Converted:
    """Convert all batch norms of a model to a framework.

    Parameters
    ----------
    model : Model
    target : Dialect or str
    source : Dialect or str, optional
        The dialect of the file, if its names do not show it.
    counts : mapping of str to int, optional
        Number of values per channel in a training batch, as for :func:`polybn.dialects.convert`, by the name of the
        layer; the number for all other layers is under ``""``.
    options : mapping, optional
        The options that the file does not say or says wrongly, in the source's words, by the name of the layer; those
        of all layers are under ``""``.

    Returns
    -------
    Converted

    Raises
    ------
    DomainError
        If a state is not complete, or cannot be converted with the known facts.

    Examples
    --------
    >>> state = {"running_mean": np.ones(2), "running_var": np.ones(2)}
    >>> from polybn.model_files.model import Model
    >>> made = convert_norms(Model("safetensors", [Norm("bn1", "pytorch", state)], 2), "keras3")
    >>> sorted(made.norms[0].state)
    ['moving_mean', 'moving_variance']
    """
    known, there = counts or {}, find(target, function="convert_norms", argument="target")
    said_of = None if source is None else find(source, function="convert_norms", argument="source")
    _check_layers("counts", known, model)
    _check_layers("options", options, model)
    made, notes = list[Norm](), dict[str, list[str]]()
    for norm, given in _completed(model, options):
        if norm.lacks:
            raise DomainError(f"polybn.convert: the state of {norm.name} must be whole; got one where {norm.lacks}")
        here = said_of or DIALECTS[norm.dialect]
        with of_layer("convert", norm.name):
            carried = convert(norm.state, here, there, known.get(norm.name, known.get("")), options=given)
            words, moved = convert_given(given, here, there)
        made.append(Norm(norm.name, there.name, carried.state, words))
        for said in dict.fromkeys((*carried.notes, *moved, *_defaults(given, here, there))):
            notes.setdefault(said, []).append(norm.name)
    for left in model.left_out:
        notes.setdefault(f"Left out: {left.why}.", []).append(left.layer)
    return Converted(made, [(said, tuple(layers)) for said, layers in notes.items()])


def _completed(model: Model, options: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[Norm, dict[str, Any]]]:
    """Yield batch norms with their options; where one says that gamma or beta is absent, an unnamed array is the other.

    Such an option of all layers is about those alone that have an unnamed array, if there are any.
    """
    asked = any(norm.unnamed is not None for norm in model.norms)
    for norm in model.norms:
        dialect, common, own = DIALECTS[norm.dialect], options.get("", {}), options.get(norm.name, {})
        if norm.unnamed is None:
            common = {word: value for word, value in common.items() if not (asked and word in dialect.affine_words)}
            yield norm, {**norm.options, **common, **own}
            continue
        given = {**norm.options, **common, **own}
        said = [given.pop(word, None) is False for word in dialect.affine_words]
        if said.count(True) == 1:
            name = dialect.names["beta" if said[0] else "gamma"]
            norm = norm._replace(state={name: norm.unnamed, **norm.state}, lacks="", unnamed=None)
        yield norm, given


def _defaults(given: Mapping[str, Any], here: Dialect, target: Dialect) -> list[str]:
    """Say which eps and momentum the source's layers have by default, where nothing says which they had."""
    notes = []
    if here.eps_word not in given:
        value = max(here.eps, target.least_eps)
        notes.append(_default("eps", (target.eps_word, value, ""), here, target, target.eps))
    if here.momentum_word not in given and here.momentum is not None and target.momentum is not None:
        value = to_old(target, to_old(here, here.momentum))
        notes.append(_default("momentum", (target.momentum_word, value, " to train on"), here, target, target.momentum))
    return notes


def _default(option: str, words: tuple[str, float, str], here: Dialect, target: Dialect, takes: float) -> str:
    word, value, purpose = words
    if value == takes:
        both = here.name if here.name == target.name else f"{here.name} and of {target.name}"
        same = f"{word}={value:g}, the default of {both}, is right{purpose}"
        return f"The file does not say {option}: {same} unless the model was made with another."
    return (
        f"The file does not say {option}. Unless the model was made with another, make the layers with "
        f"{word}={value:g}{purpose}, the default of {here.name}: {target.name} takes {takes:g}."
    )


def _check_layers(argument: str, given: Mapping[str, Any], model: Model) -> None:
    names = [norm.name for norm in model.norms]
    unknown = [layer for layer in given if layer and layer not in names]
    if unknown:
        hint = did_you_mean(near(unknown[0], names))
        raise DomainError(
            f"polybn.convert: {argument} must name layers of the model, {', '.join(names):.200}; got "
            f"{unknown[0]!r:.80} ({hint}polybn inspect lists them)"
        )


def write(norms: list[Norm], path: StrPath) -> list[str]:
    """Write states to a file whose ending selects the format; return the names in it.

    Parameters
    ----------
    norms : list of Norm
        Batch norms of one dialect.
    path : path
        The file, which must end in ``.safetensors``, ``.npz``, ``.msgpack`` (Flax) or ``.params`` (MXNet).

    Returns
    -------
    list of str

    Raises
    ------
    ModelFileError
        If it has another ending.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     write([Norm("bn1", "keras3", {"moving_mean": np.ones(2)})], f"{directory}/bn.npz")
    ['bn1/moving_mean']
    """
    arrays = {
        f"{norm.name}{SEPARATORS.get(norm.dialect, '.')}{own}": array
        for norm in norms
        for own, array in norm.state.items()
    }
    if len(arrays) < sum(len(norm.state) for norm in norms):
        raise _same(path)
    write_atomic(path, _encode(norms, arrays, Path(path).suffix.lower(), path))
    return list(arrays)


def _same(path: StrPath) -> ModelFileError:
    return ModelFileError(
        f"polybn.convert: layers must have names that differ in the output; got some that do not, for {path} "
        "(one would replace the other)"
    )


def check_ending(path: StrPath) -> None:
    """Refuse a name that selects no format, before any work."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise ModelFileError(
            f"polybn.convert: OUTPUT must end in {', '.join(ENDINGS)}; got {path} (it picks the format)"
        )


def _encode(norms: list[Norm], arrays: dict[str, Array], ending: str, path: StrPath) -> bytes:
    check_ending(path)
    if ending == ".safetensors":
        return safetensors.encode(arrays, note.write(norms))
    if ending == ".params":
        return gluon.encode({name: np.atleast_1d(array) for name, array in arrays.items()})
    if ending == ".msgpack":
        return flax.encode(_tree(norms, path))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _tree(norms: list[Norm], path: StrPath) -> dict[str, Any]:
    """Put statistics and parameters into Flax's collections, as nested layers."""
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for norm in norms:
        for own, array in norm.state.items():
            place = tree["batch_stats" if own in STATISTICS else "params"]
            for part in norm.name.replace(".", "/").split("/"):
                place = place.setdefault(part, {})
                if not isinstance(place, dict):
                    raise _same(path)
            if own in place:
                raise _same(path)
            place[own] = array
    return tree
