"""What became of every name when weights were loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KeyReport", "some"]

_SHOWN = 6  # names listed for people; the rest is counted


@dataclass(frozen=True)
class KeyReport:
    """What became of every name in a weights file and in the model.

    Attributes:
        matched: names in the model that the file filled.
        renamed: name in the file to the name in the model it was taken for.
        missing: names in the model that the file lacks.
        unexpected: names in the file that the model lacks.
        mismatched: name to the shape in the file and the shape in the model.
        adapted: name in the model to what was done so that it fits, or why it was left as it was.
    """

    matched: Sequence[str]
    renamed: Mapping[str, str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    adapted: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the report for people: a line for each kind of outcome there is, with the first names."""
        shapes = [f"{n} {theirs} there, {ours} here" for n, (theirs, ours) in self.mismatched.items()]
        kinds = {
            "matched": list(self.matched),
            "renamed": [f"{old} -> {new}" for old, new in self.renamed.items()],
            "adapted": [f"{name}: {what}" for name, what in self.adapted.items()],
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "mismatched": shapes,
        }
        return [
            f"{kind}: {len(names)}" + ("" if kind == "matched" else f" ({some(names, 3)})")
            for kind, names in kinds.items()
            if names or kind == "matched"
        ]

    def within(self, inner: str, own: Collection[str]) -> KeyReport:
        """Return this report, of a part called `inner`, as that of the whole, with all its names `own`."""
        missing = (name for name in own if not name.startswith(f"{inner}."))
        return KeyReport(
            matched=[f"{inner}.{name}" for name in self.matched],
            renamed={old: f"{inner}.{new}" for old, new in self.renamed.items()},
            missing=[*(f"{inner}.{name}" for name in self.missing), *missing],
            unexpected=self.unexpected,
            mismatched={f"{inner}.{name}": shapes for name, shapes in self.mismatched.items()},
            adapted={f"{inner}.{name}": what for name, what in self.adapted.items()},
        )

    def as_dict(self) -> dict[str, Any]:
        """Return every name, as JSON values."""
        return {
            "matched": list(self.matched),
            "renamed": dict(self.renamed),
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "mismatched": {n: [list(theirs), list(ours)] for n, (theirs, ours) in self.mismatched.items()},
            "adapted": dict(self.adapted),
        }


def some(words: Sequence[str], shown: int = _SHOWN) -> str:
    """Return the first few words and the number of the others."""
    rest = len(words) - shown
    return ", ".join(words[:shown]) + (f" and {rest} more" if rest > 0 else "")
