"""The page of the command line, from the help texts that ``polybn --help`` prints."""

from __future__ import annotations

import re
from typing import Any

import typer.main

from polybn.cli import app


def to_markdown() -> str:
    """Write a section for each command: its help, its usage, its arguments and options."""
    # Some versions of Typer use click, others a copy of click; the two have no common base class to annotate with.
    group: Any = typer.main.get_command(app)
    context = group.make_context("polybn", [], resilient_parsing=True)
    parts = [_prose(group.help)]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        usage = " ".join(["polybn", name, *command.collect_usage_pieces(inner)])
        parts += [f"## polybn {name}", _prose(command.help), _fence(usage, "text")]
        records = [parameter.get_help_record(inner) for parameter in command.params]
        parts += [_entry(*record) for record in records if record is not None]
    return "\n\n".join(parts) + "\n"


def _entry(names: str, meaning: str) -> str:
    """Write one definition. Typer puts the default and the variable at the end of a help text; here they are italic."""
    facts = re.search(r"\s*\[(?=(?:default|env var|required|x[<>]|\d))[^\[\]]*\]$", meaning)
    if facts is not None:
        meaning = f"{meaning[: facts.start()]} *({facts[0].strip()[1:-1]})*"
    return f"`{names}`\n: {meaning.strip()}"


def _prose(markup: str) -> str:
    """Turn rich's markup into Markdown; ``[dim]`` marks examples, ``[bold]`` commands."""
    text = re.sub(r"\[dim\](.*?)\[/dim\]", lambda m: _fence(m[1], "bash"), markup, flags=re.DOTALL)
    return re.sub(r"\[bold\](.*?)\[/bold\]", r"`\1`", text)


def _fence(body: str, language: str) -> str:
    lines = "\n".join(line.strip() for line in body.strip().splitlines())
    return f"```{language}\n{lines}\n```"
