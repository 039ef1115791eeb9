"""One door to examples, wherever they lie, and the labels that come with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets

from reskit.data.column import IMAGES, Column
from reskit.data.config import DataConfig
from reskit.data.info import DataInfo, SplitInfo
from reskit.data.kinds import SOURCES, Found
from reskit.data.labels import Labels, encode_labels, stratified_holdout
from reskit.data.seeds import derive_seed
from reskit.data.split import OnCorrupt, Split
from reskit.errors import DataError, did_you_mean

__all__ = ["Source", "kind_of", "open_labelled", "open_source"]

_ORDER = ("train", "validation", "test")


class Source:
    """Examples in splits, and what is known of each.

    Attributes:
        kind: name of the kind of place.
        title: that kind in words.
        location: where it was opened from.
        classes: class names; labels are indices into them.
        splits: by name: ``train`` and at least one of ``validation`` and ``test``.
        columns: which column holds the examples and which the ``label`` or another target.
        notes: what was left aside or decided, in words.
    """

    def __init__(
        self,
        kind: str,
        location: str,
        splits: Mapping[str, Split],
        columns: dict[str, str],
        notes: list[str],
        *,
        title: str,
    ) -> None:
        self.kind = kind
        self.title = title
        self.location = location
        self.splits = dict(splits)
        self.columns = columns
        self.notes = notes
        self.classes = next(iter(self.splits.values())).classes

    def __getitem__(self, name: str) -> Split:
        if name not in self.splits:
            raise DataError(f"no split {name!r} in {self.location}: it has {', '.join(self.splits)}")
        return self.splits[name]

    @property
    def held_out(self) -> str:
        """Name of the split for the final evaluation: ``test`` where there is one, else ``validation``."""
        return "test" if "test" in self.splits else "validation"

    @property
    def fingerprint(self) -> str:
        """Name of these data: 64 hexadecimal digits that change with any example, label or split."""
        parts = [self.splits[name].fingerprint for name in sorted(self.splits)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def describe(self) -> DataInfo:
        """Measure the data: counts, and what the examples are like, of images from their headers only.

        Raises:
            DataError: an example cannot be read and `on_corrupt` is ``"refuse"``.
        """
        splits = list(self.splits.values())
        measured = type(splits[0]).measured(splits)
        return DataInfo(
            kind=self.kind,
            title=self.title,
            location=self.location,
            columns=self.columns,
            classes=self.classes,
            splits={name: _counts(split) for name, split in self.splits.items()},
            held_out=self.held_out,
            **measured,
            corrupt=[name for split in self.splits.values() for name in split.corrupt.values()],
            fingerprint=self.fingerprint,
            notes=self.notes,
        )

    def summary(self) -> str:
        """Return the description as a few lines of text."""
        return "\n".join(self.describe().lines())


def open_source(
    path: str | Path | None,
    *,
    examples: Column = IMAGES,
    column: str | Sequence[str] | None = None,
    label_column: str | None = None,
    leave_out: Sequence[str] = (),
    on_corrupt: OnCorrupt = "refuse",
    holdout: float = 0.2,
    validation: float = 0.0,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Source:
    """Open labelled examples; what kind of place `path` is, is found out.

    Args:
        path: folder of files, Parquet, CSV, WebDataset or saved `datasets` folder, ``owner/name`` on the Hub;
            of images also None or ``"digits"`` for the embedded sample.
        examples: what they are.
        column: which column holds the examples, where the guess would be wrong; of rows, which they are made
            of.
        label_column: likewise for the label.
        leave_out: columns that are not looked at.
        on_corrupt: ``"refuse"`` unreadable examples or ``"skip"`` and list them.
        holdout: part of each class held out as ``test`` when the data have one split only; 0 takes all of
            them for ``test``.
        validation: part of each class of ``train`` set aside as ``validation``, to choose epochs by; only
            where the data have no such split.
        seed: of both draws.
        cache_dir: where `datasets` keeps its copies; nothing is ever written beside the data.

    Raises:
        DataError: the place is not there, not understood, or its data make no sense.
    """
    if on_corrupt not in ("refuse", "skip"):
        raise DataError(f"on_corrupt must be 'refuse' or 'skip', got {on_corrupt!r}")
    if path is None and examples.sample is None:
        raise DataError(f"no data: say where the labelled {examples.what}s are, by --data or data.path")
    location = str(examples.sample) if path is None else str(path)
    if location.startswith("~"):
        location = str(Path(location).expanduser())
    kind = kind_of(location)
    cache = Path(cache_dir) if cache_dir else None
    found = SOURCES.get(kind).open(location, cache, examples.suffixes)
    tables, notes = _usable(found, location)
    features = dict(tables["train"].features)
    for name in leave_out:
        if name not in features:
            raise DataError(f"data.leave_out: no column {name!r}{did_you_mean(name, features)}")
        del features[name]
    chosen, label = examples.choose(features, column or found.column, label_column or found.label_column)
    classes, coded = encode_labels(
        {name: _labels(table, label, name) for name, table in tables.items()}, features[label]
    )
    if len(tables) == 1 and not holdout:
        tables, coded = {"test": tables["train"]}, {"test": coded["train"]}
    elif len(tables) == 1:
        _set_aside("test", tables, coded, classes, part=holdout, seed=seed, notes=notes)
    if validation and holdout and "validation" not in tables:
        _set_aside("validation", tables, coded, classes, part=validation, seed=seed, notes=notes)
    taken = {name: examples.taken(table, chosen) for name, table in tables.items()}
    splits = {
        name: examples.split(
            name,
            taken[name][0],
            column=taken[name][1],
            labels=coded[name],
            classes=classes,
            root=found.root,
            on_corrupt=on_corrupt,
            cache_dir=cache,
        )
        for name in _ORDER
        if name in tables
    }
    for split in splits.values():
        _check_files(split)
    columns = {examples.what: chosen if isinstance(chosen, str) else ", ".join(chosen), "label": label}
    return Source(kind, location, splits, columns, notes, title=SOURCES.get(kind).title)


def open_labelled(data: DataConfig, *, seed: int, examples: Column = IMAGES) -> Source:
    """Open labelled examples as a recipe says; see `open_source`."""
    return open_source(
        data.path,
        examples=examples,
        column=data.column_of(examples.what),
        label_column=data.label_column,
        leave_out=data.leave_out,
        on_corrupt=data.on_corrupt,
        holdout=data.holdout,
        validation=data.validation,
        seed=seed,
    )


def kind_of(location: str) -> str:
    """Return the name of the kind of place a location is.

    Raises:
        DataError: it is not there, or of no kind.
    """
    for name in sorted(SOURCES, key=lambda name: SOURCES.get(name).order):
        if SOURCES.get(name).matches(location):
            return name
    if not Path(location).exists():
        raise DataError(f"no such file or folder: {location}")
    looked = "; ".join(SOURCES.get(name).looks_like for name in SOURCES)
    raise DataError(f"cannot tell what {location} is; looked for {looked}")


def _usable(found: Found, location: str) -> tuple[dict[str, datasets.Dataset], list[str]]:
    tables = {name: table for name, table in found.splits.items() if len(table)}
    notes = [*found.notes, *(f"split {name!r} is empty" for name in found.splits if name not in tables)]
    if not tables:
        raise DataError(f"{location} holds no rows")
    if len(tables) == 1:  # one split, whatever it is called, is divided into two
        return {"train": next(iter(tables.values()))}, notes
    if "train" not in tables:
        raise DataError(f"{location} has the splits {', '.join(tables)} but no 'train'")
    return tables, notes


def _set_aside(
    name: str,
    tables: dict[str, datasets.Dataset],
    coded: dict[str, Labels],
    classes: list[str],
    *,
    part: float,
    seed: int,
    notes: list[str],
) -> None:
    """Draw a part of each class of ``train`` into a split of its own."""
    key = "holdout" if name == "test" else name
    kept, drawn = stratified_holdout(coded["train"], part, seed=derive_seed(seed, key), names=classes)
    notes.append(f"no {name} split was found: {len(drawn)} examples were drawn from train (seed {seed})")
    tables[name], coded[name] = tables["train"].select(drawn), coded["train"][drawn]
    tables["train"], coded["train"] = tables["train"].select(kept), coded["train"][kept]


def _labels(table: datasets.Dataset, column: str, split: str) -> list[object]:
    if column not in table.column_names:
        raise DataError(f"split {split!r} has no column {column!r}: it has {', '.join(table.column_names)}")
    values: list[object] = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    return values


def _check_files(split: Split) -> None:
    """Files named in a table must be there: a wrong path is a mistake in the table, not a bad file."""
    names = split.paths()
    missing = [row for row, name in enumerate(names) if not name or not split.resolve(name).is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"split {split.name!r} row {missing[0]} names the {split.what} {names[missing[0]]!r}, which is"
            f" not there{more}; paths are relative to {split.root}"
        )


def _counts(split: Split) -> SplitInfo:
    return SplitInfo(count=len(split), per_class=split.counts())
