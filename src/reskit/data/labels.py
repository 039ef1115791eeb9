"""Which column holds the examples and which the label, and labels as class indices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from reskit.errors import DataError, did_you_mean

__all__ = ["Labels", "encode_labels", "guess_label", "pick_column", "stratified_holdout"]

Labels = npt.NDArray[np.int64]

_LABEL_NAMES = (
    *("label", "labels", "class", "target", "fine_label", "class_name", "class_id", "category", "cls"),
    *("label_name", "target_class", "y", "digit", "sentiment", "intent"),
)


def guess_label(features: Mapping[str, Any], given: str | None = None) -> str:
    """Return the name of the label column; see `pick_column`."""
    return pick_column("label", features, given, datasets.ClassLabel, _LABEL_NAMES)


def pick_column(
    what: str, features: Mapping[str, Any], given: str | None, kind: type | None, usual: Sequence[str]
) -> str:
    """Return the name of a column.

    A name that was given is used; else the one column of a type, else the first usual name among the columns.

    Args:
        what: it holds, for people.
        features: the columns to choose from, by name.
        given: the name, where it is known.
        kind: the type, where there is one.
        usual: names in lower case, the most telling first.

    Raises:
        DataError: a given column is not there, or none fits.
    """
    if given is not None:
        if given not in features:
            raise DataError(f"no column {given!r} for the {what}{did_you_mean(given, features)}")
        return given
    typed = [name for name, feature in features.items() if kind and isinstance(feature, kind)]
    if len(typed) == 1:
        return typed[0]
    lowered = {name.lower(): name for name in (typed or features)}
    named = [lowered[word] for word in usual if word in lowered]
    if named:
        return named[0]
    raise DataError(
        f"cannot tell which column holds the {what}: found {', '.join(features) or 'no other'}; "
        f"say so with data.{what}_column"
    )


def encode_labels(
    columns: Mapping[str, Sequence[Any]], feature: Any = None
) -> tuple[list[str], dict[str, Labels]]:
    """Turn label columns into class names and indices.

    Args:
        columns: raw labels of each split, ``train`` among them.
        feature: the column's type; a ClassLabel brings its own names.

    Returns:
        the class names, sorted (numbers by value), and for each split the int64 indices ``(N,)``.

    Raises:
        DataError: a label is missing, negative or out of range, there are fewer than two classes, or a class
            appears in a held-out split only.
    """
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if names is None:
        values = {
            split: [_plain(v, split, row) for row, v in enumerate(column)]
            for split, column in columns.items()
        }
        values = _numbers_if_all(values)
        order = sorted(set(values["train"]), key=lambda value: (isinstance(value, str), value))
        names = [str(value) for value in order]
        index = {value: position for position, value in enumerate(order)}
        coded = {
            split: np.array([_known(v, index, split, row) for row, v in enumerate(column)], dtype=np.int64)
            for split, column in values.items()
        }
    else:
        coded = {
            split: np.array(
                [_in_range(v, len(names), split, row) for row, v in enumerate(column)], dtype=np.int64
            )
            for split, column in columns.items()
        }
    _check_classes(names, coded)
    return list(names), coded


def _plain(value: Any, split: str, row: int) -> int | str:
    """Return a raw label as int or text."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"split {split!r} row {row} has no label")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        value = value.decode(errors="replace").strip()
    if not isinstance(value, int | str):
        raise DataError(f"split {split!r} row {row} has the label {value!r}; expected an integer or a name")
    if isinstance(value, int) and value < 0:
        raise DataError(f"split {split!r} row {row} has the negative label {value}: is it unlabelled?")
    return value


def _numbers_if_all(values: dict[str, list[int | str]]) -> dict[str, list[int | str]]:
    """Read text labels as numbers if every one is a number, so that 10 sorts after 9."""
    texts = {value for column in values.values() for value in column if isinstance(value, str)}
    if not texts or not all(text.isdecimal() and str(int(text)) == text for text in texts):
        return values
    return {split: [int(value) for value in column] for split, column in values.items()}


def _known(value: int | str, index: Mapping[int | str, int], split: str, row: int) -> int:
    if value not in index:
        raise DataError(
            f"class {str(value)!r} appears in split {split!r} (row {row}) but not in 'train': a network "
            "cannot learn it; add training examples or remove it"
        )
    return index[value]


def _in_range(value: Any, count: int, split: str, row: int) -> int:
    if value is None:
        raise DataError(f"split {split!r} row {row} has no label")
    if not 0 <= value < count:
        raise DataError(
            f"split {split!r} row {row} has label {value}, out of range: there are {count} classes, from 0"
        )
    return int(value)


def _check_classes(names: Sequence[str], coded: Mapping[str, Labels]) -> None:
    train = set(np.unique(coded["train"]).tolist())
    for split, labels in coded.items():
        for label in sorted(set(np.unique(labels).tolist()) - train):
            row = int(np.flatnonzero(labels == label)[0])
            _known(names[label], {}, split, row)
    if len(train) < 2:
        only = f" ({names[next(iter(train))]!r})" if train else ""
        raise DataError(f"the training examples have {len(train)} class{only}: at least two are needed")


def stratified_holdout(
    labels: Labels, fraction: float, *, seed: int, names: Sequence[str]
) -> tuple[Labels, Labels]:
    """Divide rows into kept and held out, each class in the same proportion.

    Args:
        labels: class indices ``(N,)``.
        fraction: part to hold out, between 0 and 1; at least one of each class goes to each side.
        seed: of the draw.
        names: class names, for the message.

    Returns:
        sorted row numbers kept, and held out.

    Raises:
        DataError: `fraction` is not inside (0, 1), or a class has fewer than two.
    """
    if not 0 < fraction < 1:
        raise DataError(f"holdout must lie between 0 and 1, got {fraction}")
    generator = np.random.default_rng(seed)
    held: list[Labels] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise DataError(
                f"class {names[label]!r} has one example: two are needed to hold one out; add some, or give "
                "a test split of your own"
            )
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        held.append(generator.permutation(rows)[:count])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen
