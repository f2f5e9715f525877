"""MXNet's symbol, the JSON file beside ``.params``: it says eps, momentum and whether gamma is taken for 1."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from polybn.atomic import read_whole
from polybn.dialects import DIALECTS
from polybn.model_files.errors import naming
from polybn.model_files.model import Model, Norm

MOST_BYTES = 2**24
DEFAULTS = {"eps": "0.001", "momentum": "0.9", "axis": "1", "fix_gamma": "True"}
"""What MXNet's operator takes if a node says nothing."""


def with_options(model: Model, params: Path) -> Model:
    """Add what ``NAME-symbol.json`` says to the batch norms of ``NAME-0000.params``, if it is there."""
    symbol = params.with_name(re.sub(r"-\d{4}\.params$", "", params.name) + "-symbol.json")
    if not symbol.exists():
        return model
    with naming("model_files.read", symbol, "an undamaged symbol of MXNet"):
        nodes = json.loads(read_whole(symbol, MOST_BYTES))["nodes"]
        said = {nodes[node["inputs"][3][0]]["name"]: _said(node) for node in nodes if node["op"] == "BatchNorm"}
        return model._replace(norms=[_with(norm, said) for norm in model.norms])


def _said(node: dict[str, Any]) -> dict[str, str]:
    """Return a node's attributes, whose key is ``attrs``, and in older files ``attr`` or ``param``."""
    return {**DEFAULTS, **node.get("param", {}), **node.get("attr", {}), **node.get("attrs", {})}


def _with(norm: Norm, said: dict[str, dict[str, str]]) -> Norm:
    dialect = DIALECTS[norm.dialect]
    attributes = said.get(f"{norm.name}_{dialect.names['running_mean']}")
    if attributes is None:
        return norm
    options: dict[str, Any] = {
        dialect.momentum_word: float(attributes["momentum"]),
        dialect.eps_word: float(attributes["eps"]),
        "axis": int(attributes["axis"]),
    }
    fixed = attributes["fix_gamma"].lower() in ("true", "1")
    if dialect.fix_gamma:
        options["fix_gamma"] = fixed
    elif fixed and "gamma" in norm.state:
        norm = norm._replace(state=norm.state | {"gamma": np.ones_like(norm.state["gamma"])})
    return norm._replace(options=options)
