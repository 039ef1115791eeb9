"""The ``-symbol.json`` of MXNet: which layers there are, with which options, and what they take."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reskit.errors import WeightsError

__all__ = ["Layer", "Symbol", "parse_symbol"]

_TEXT_LIMIT = 1 << 26  # bytes; descriptions of the deepest networks take less than one


@dataclass(frozen=True)
class Layer:
    """One node of the file.

    Attributes:
        op: the operation; ``"null"`` for the image and for arrays.
        name: the node's name.
        inputs: positions of the nodes it takes.
        options: as written, which is always text.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    options: Mapping[str, str]

    def text(self, name: str, default: str) -> str:
        """Return an option."""
        value = self.options.get(name, default)
        return default if value == "None" else value

    def flag(self, name: str, default: bool) -> bool:
        """Return an option that is yes or no."""
        return self.text(name, str(default)).lower() in ("true", "1")

    def numbers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """Return an option that is a few whole numbers."""
        text = self.text(name, str(tuple(default)))
        # Python 2 wrote whole numbers with an L.
        parts = [part.strip().removesuffix("L") for part in text.strip("()[] ").split(",") if part.strip()]
        if not all(re.fullmatch(r"-?\d{1,9}", part) for part in parts):
            raise WeightsError(
                f"layer {self.name!r} ({self.op}) has {name} {text[:40]!r}: the file is damaged"
            )
        return [int(part) for part in parts]

    def pair(self, name: str, default: int | None = None) -> list[int]:
        """Return an option that is a height and a width."""
        values = self.numbers(name, () if default is None else (default, default)) or [default or 0] * 2
        self.refuse(len(values) != 2, f"has {name} {tuple(values)}, not of two dimensions")
        return values

    def number(self, name: str, default: float) -> float:
        """Return an option that is a number."""
        text = self.text(name, repr(default))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise WeightsError(
                f"layer {self.name!r} ({self.op}) has {name} {text[:40]!r}: the file is damaged"
            )
        return value

    def refuse(self, condition: bool, what: str) -> None:
        """Raise a WeightsError about the layer if `condition`."""
        if condition:
            raise WeightsError(f"layer {self.name!r} ({self.op}) {what}: such networks are not read")


@dataclass(frozen=True)
class Symbol:
    """What a ``-symbol.json`` says.

    Attributes:
        layers: each after all it takes.
        head: position of the answer.
        version: of MXNet, as a number such as 10901; 0 where the file has none.
    """

    layers: Sequence[Layer]
    head: int
    version: int


def parse_symbol(path: Path) -> Symbol:
    """Read and check a ``-symbol.json``."""
    size = path.stat().st_size
    if not 0 < size <= _TEXT_LIMIT:
        raise WeightsError(f"{size} bytes cannot be the description of a network: give its -symbol.json")
    try:
        content = json.loads(path.read_bytes())
        layers = [_layer(node, position) for position, node in enumerate(content["nodes"])]
        head = int(content["heads"][0][0])
        if int(content["heads"][0][1]) != 0 or not 0 <= head < len(layers):
            raise ValueError("its head is no layer")
        version = content.get("attrs", {}).get("mxnet_version", (0, 0))[1]
        return Symbol(layers, head, version if isinstance(version, int) else 0)
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise WeightsError(f"this is not the description of an MXNet network ({reason})") from error


def _layer(node: Mapping[str, Any], position: int) -> Layer:
    """Return one node; options are under different names in files of different ages."""
    options = {**node.get("attr", {}), **node.get("param", {}), **node.get("attrs", {})}
    inputs = tuple(int(source[0]) for source in node["inputs"])
    if not all(0 <= source < position for source in inputs):
        raise ValueError(f"node {position} takes a node after it")
    if any(int(source[1]) != 0 for source in node["inputs"]):
        raise ValueError(f"node {position} takes a second answer of another")
    return Layer(str(node["op"]), str(node["name"]), inputs, {k: str(v) for k, v in options.items()})
