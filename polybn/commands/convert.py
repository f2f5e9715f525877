"""``polybn convert``: the batch norms of a model under the names of another framework, or folded into other layers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polybn.atomic import write_atomic
from polybn.console import check_place, err, out, shown
from polybn.spec import DomainError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from polybn.model_files import Norm
    from polybn.model_files.fold import Folded

SHOWN = 3
WORDS = {"True": True, "False": False, "None": None}
"""The values of options that are no numbers; a momentum of None is PyTorch's average over all batches."""
USES = {
    ".safetensors": "safetensors.numpy.load_file({!r})",
    ".npz": "numpy.load({!r})",
    ".msgpack": "flax.serialization.msgpack_restore(open({!r}, 'rb').read())",
    ".params": "mxnet.nd.load({!r})",
}
"""For each ending, the code that reads the arrays in a program."""


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The model, as for polybn inspect.")],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT",
            help="What to write, in the place of a file that is there; the ending picks the format: .safetensors, "
            ".npz, .msgpack, .params.",
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="DIALECT", help="The framework that is to have them; polybn dialects lists the names."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="DIALECT", help="The framework that wrote FILE, where its arrays' names do not tell."
        ),
    ] = None,
    count: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LAYER=]N",
            help="How many values per channel a training batch has, images times places: the running variance is "
            "converted between biased and unbiased. Of one layer, or of all that are not named. May be given several "
            "times.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LAYER.]WORD=VALUE",
            help="What FILE does not say of its layers, in its own words: eps=0.001, bn1.momentum=0.1, "
            "fix_gamma=False, scale=False, momentum=None. May be given several times.",
        ),
    ] = None,
    fold: Annotated[
        bool,
        typer.Option("--fold", help="Instead: write the whole ONNX model, batch norms folded into what comes before."),
    ] = False,
) -> None:
    """Write the batch norms of a model under the names of another framework, and say what is not exact.

    Statistics and parameters get the target's names, its sense of variance and its way of storing. Without --count,
    inference is the same and the running variance stays as it is; with it, the variance becomes the one that the
    target would have kept. What cannot be exact is said, and nothing is guessed.

    [dim]polybn convert model.safetensors batch-norms.npz --to keras3
    polybn convert model.keras batch-norms.msgpack --to flax_linen
    polybn convert net.params bn.npz --to pytorch --option fix_gamma=False
    polybn convert model.onnx folded.onnx --fold[/dim]
    """
    from polybn import dialects, model_files
    from polybn.inspection.words import count_of
    from polybn.model_files import writing

    if fold:
        if to is not None or source is not None or count or option:
            raise DomainError("polybn.convert: --fold must stand alone; got --to, --from, --count or --option as well")
        _check_output(output, file, (".onnx",), "--fold writes a whole model")
        _fold(file, output)
        return
    if to is None:
        raise DomainError(
            "polybn.convert: --to must name a dialect; got none (`polybn dialects` lists them; or --fold)"
        )
    target = dialects.find(to, function="convert", argument="--to")
    here = None if source is None else dialects.find(source, function="convert", argument="--from")
    counts, options = _counts(count or []), _options(option or [])
    _check_output(output, file, writing.ENDINGS, "it picks the format")
    model = model_files.read(file, first=() if here is None else (here.name,))
    if not model.norms:
        why = [f"; {left.layer!r:.80} is left out: {left.why}" for left in model.left_out[:1]]
        raise DomainError(
            f"polybn.convert: FILE must hold a batch norm; got none in {file} ({model.format}){''.join(why)}"
        )
    made = writing.convert_norms(model, target, source=here, counts=counts, options=options)
    names = writing.write(made.norms, output)
    words = ", ".join(sorted({norm.dialect for norm in model.norms})) if here is None else here.name
    left = len({left.layer for left in model.left_out} - {norm.name for norm in model.norms})
    some = f"{count_of(len(made.norms), 'batch norm')}{f', {left} left out' if left else ''}"
    first = f"{some}, from {words} to {target.name}, in {output}: {names[0]}, ..."
    out.print(shown(first))
    for line in _to_make(made.norms, output.suffix.lower()):
        out.print(shown(line))
    for note, layers in made.notes:
        out.print(shown(f"{_some(layers)}: {note}"))
    for line in _of_one_count(made.norms, counts):
        out.print(shown(line))
    out.print(shown(f"In a program, {USES[output.suffix.lower()].format(str(output))} has the arrays by name:"))
    out.print("docs/model-files.md, in PolyBN's repository, shows how a model takes them.")


def _check_output(output: Path, file: Path, endings: tuple[str, ...], why: str) -> None:
    """Refuse a place that cannot be written, with a suggestion that can."""
    name = "folded" if endings == (".onnx",) else "batch-norms"
    if output.is_dir():
        ending = output.suffix if output.suffix.lower() in endings else endings[0]
        raise DomainError(
            f"polybn.convert: OUTPUT must name a file; got {output}, a folder (try {output / name}{ending})"
        )
    if output.suffix.lower() not in endings:
        better = output.with_suffix(endings[0])
        better = better.with_stem(f"{better.stem}-2") if better == file else better
        raise DomainError(
            f"polybn.convert: OUTPUT must end in {', '.join(endings)}; got {output} ({why}; try {better})"
        )
    check_place("convert", "OUTPUT", output, file)


def _counts(given: list[str]) -> dict[str, int]:
    """Return the values of --count by layer, with an empty name for all other layers."""
    counts = dict[str, int]()
    for text in given:
        layer, _, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 2:
            raise DomainError(f"polybn.convert: --count must be N or LAYER=N, N of 2 or more; got {text!r}")
        if layer in counts:
            of = f"the layer {layer}" if layer else "all layers that are not named"
            raise DomainError(f"polybn.convert: --count must be said once of {of}; got {text!r} after {counts[layer]}")
        counts[layer] = int(number)
    return counts


def _options(given: list[str]) -> dict[str, dict[str, Any]]:
    """Return the values of --option by layer and word, with an empty name for all other layers."""
    options = dict[str, dict[str, Any]]()
    for text in given:
        name, _, number = text.rpartition("=")
        layer, _, word = name.rpartition(".")
        own = options.setdefault(layer, {})
        if word in own:
            raise DomainError(f"polybn.convert: --option must give a word once; got {text!r:.80} after {own[word]}")
        try:
            own[word] = _value(number)
        except ValueError:
            word = ""
        if not word:
            raise DomainError(
                f"polybn.convert: --option must be [LAYER.]WORD=NUMBER, or WORD=True, False or None; got {text!r:.80}"
            )
    return options


def _value(text: str) -> bool | float | None:
    """Return a number, or the value of one of Python's words; ValueError for anything else."""
    if text in WORDS:
        return WORDS[text]
    with contextlib.suppress(ValueError):
        return int(text)
    return float(text)


def _to_make(norms: list[Norm], ending: str) -> Iterator[str]:
    """Say with which options the layers must be made: all names but those of the commonest options."""
    layers = dict[str, list[str]]()
    for norm in norms:
        layers.setdefault(_words(norm), []).append(norm.name)
    ranked = sorted(layers.items(), key=lambda item: len(item[1]))
    for words, names in ranked:
        many = words == ranked[-1][0] and len(names) > 1
        who = "the layers" if len(ranked) == 1 else "the other layers" if many else ", ".join(names)
        if words:
            yield f"Make {who} with {words}."
    if any(norm.options for norm in norms) and ending != ".safetensors":
        yield f"A file in {ending} does not hold these numbers; one in .safetensors does."


def _words(norm: Norm) -> str:
    """Return the arguments that a layer needs: no axis that it takes anyway, and no gamma and beta that it has not."""
    from polybn.dialects import DIALECTS

    dialect = DIALECTS[norm.dialect]
    words = {word: value for word, value in norm.options.items() if (word, value) != ("axis", dialect.axis)}
    absent = (dialect.names["gamma"] not in norm.state, dialect.names["beta"] not in norm.state)
    words |= {word: False for word, is_absent in zip(dialect.affine_words, absent, strict=False) if is_absent}
    return ", ".join(f"{word}={value}" for word, value in words.items())


def _of_one_count(norms: list[Norm], counts: dict[str, int]) -> Iterator[str]:
    """Say that one count was taken for several layers: no file tells in which of them it is wrong."""
    others = [norm.name for norm in norms if norm.name not in counts]
    if "" in counts and len(others) > 1:
        yield (
            f"--count {counts['']} was taken for {len(others)} layers. It is images times places, so layers whose "
            f"feature maps differ need their own: --count {others[0]}=N."
        )


def _fold(file: Path, output: Path) -> None:
    from polybn.inspection.words import count_of
    from polybn.model_files import reading

    folded: Folded = reading.fold(file)
    write_atomic(output, folded.model.SerializeToString())
    total = len(folded.into) + len(folded.kept)
    out.print(f"Folded {len(folded.into)} of {count_of(total, 'batch norm')}, in {output}.")
    reasons = dict.fromkeys(why for _, why in folded.kept)
    for reason in reasons:
        layers = tuple(name for name, why in folded.kept if why == reason)
        err.print(shown(f"{_some(layers)}: kept, because {reason}."))


def _some(layers: tuple[str, ...]) -> str:
    shown = ", ".join(layers[:SHOWN])
    return shown if len(layers) <= SHOWN else f"{shown} and {len(layers) - SHOWN} more"
