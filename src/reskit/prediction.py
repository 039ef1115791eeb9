"""What does a bundle say of these examples? Files, folders, globs and what is in memory alike."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from reskit.backends.answers import Answers, answers
from reskit.bundle import Bundle
from reskit.errors import ConfigError, DataError
from reskit.files import atomic_file, to_json, write_text, writing
from reskit.inputs import Found
from reskit.tasks import Task

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image as PILImage

__all__ = ["OUTPUT_FORMATS", "Predictions", "predict", "predict_rows"]

OUTPUT_FORMATS = (".csv", ".json", ".jsonl", ".parquet")
"""Suffixes `Predictions.write` knows."""

_ROWS_IN_TEXT, _ROWS_IN_TABLE = 10, 20


class Predictions(Sequence[dict[str, Any]]):
    """One row an input, in the order given.

    A row has the keys input (a path, or a place such as ``inputs[3]`` of what was passed), those of the task
    and error: None, or why there is no prediction (the task's are then None, or empty). Of a classifier
    these are label, confidence (probability of the label) and top (up to five ``{"label", "probability"}``,
    most probable first).

    Args:
        rows: as `predict_rows` yields them.
        task: says how a row is shown and stored.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], task: Task) -> None:
        self._rows, self._task = list(rows), task

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Predictions: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | Predictions:
        return Predictions(self._rows[place], self._task) if isinstance(place, slice) else self._rows[place]

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Predictions) and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]

    @property
    def errors(self) -> Predictions:
        """The rows without a prediction."""
        return Predictions((row for row in self._rows if row["error"] is not None), self._task)

    def write(self, path: str | Path) -> Path:
        """Write all rows, whole or not at all, in the format the suffix names.

        ``.json`` is a list of rows, ``.jsonl`` a row a line, ``.parquet`` has lists of structs. In ``.csv`` a
        list such as `top` is spread over the columns ``top1_label, top1_probability, top2_label, ...``, one
        of numbers over ``latent1, latent2, ...``; an empty field stands for None.

        Raises:
            ConfigError: another suffix.
            OutputError: the file system refuses.
        """
        path = Path(path)
        text: dict[str, Callable[[], str]] = {".csv": self._csv, ".json": self._json, ".jsonl": self._jsonl}
        suffix = path.suffix.lower()
        if suffix in text:
            write_text(path, text[suffix]())
        elif suffix == ".parquet":
            self._write_parquet(path)
        else:
            raise ConfigError(
                f"cannot tell a format from the name {str(path)!r}: end it in {', '.join(OUTPUT_FORMATS)}"
            )
        return path

    def to_table(self) -> pa.Table:
        """Return the rows as a pyarrow table."""
        import pyarrow as pa

        ends = pa.field("input", pa.string()), pa.field("error", pa.string())
        return pa.Table.from_pylist(self._rows, schema=pa.schema([ends[0], *self._task.columns(), ends[1]]))

    def __repr__(self) -> str:
        good = len(self) - len(self.errors)
        lines = [f"Predictions: {good} of {len(self)} inputs read"]
        lines += [
            f"  {_printable(row['input'])}: {self._in_words(row)}" for row in self._rows[:_ROWS_IN_TEXT]
        ]
        left = len(self) - _ROWS_IN_TEXT
        return "\n".join(lines + [f"  ... and {left:,} more"] * (left > 0))

    def __rich__(self) -> Table:
        """Return the first rows as a table for the terminal."""
        left = len(self) - _ROWS_IN_TABLE
        table = Table(caption=f"... and {left:,} more" if left > 0 else None, caption_justify="left")
        table.add_column("input", overflow="fold")
        shown = [
            None if row["error"] is not None else self._task.words(row) for row in self._rows[:_ROWS_IN_TABLE]
        ]
        names = list(next((words for words in shown if words is not None), {"prediction": ""}))
        for place, name in enumerate(names):
            table.add_column(name, overflow="fold", style="dim" if place > 1 else "")
        for row, words in zip(self._rows, shown, strict=False):
            cells = [Text(_printable(text)) for text in (words or {}).values()]
            if words is None:
                cells = [Text(_printable(row["error"]), style="red")]
            table.add_row(Text(_printable(row["input"])), *cells)
        return table

    def _in_words(self, row: Mapping[str, Any]) -> str:
        if row["error"] is not None:
            return f"error: {_printable(row['error'])}"
        first, *rest = (_printable(text) for text in self._task.words(row).values())
        return " ".join([first, *rest[:1], *(f"({text})" for text in rest[1:] if text)])

    def _csv(self) -> str:
        lists = {name for row in self._rows for name, value in row.items() if isinstance(value, list)}
        width = {name: max(len(row.get(name, ())) for row in self._rows) for name in lists}
        keys = {
            name: list(_by_suffix(next((item for row in self._rows for item in row.get(name, ())), {})))
            for name in lists
        }
        # Rows without an answer have no saved pictures either.
        named = dict.fromkeys(name for row in self._rows for name in row)
        columns = list(named) or ["input", *self._task.blank, "error"]

        def cells(row: Mapping[str, Any], name: str) -> list[Any]:
            if name not in lists:
                return [row.get(name)]
            found = [_by_suffix(item)[key] for item in row.get(name, ()) for key in keys[name]]
            return found + [None] * (width[name] * len(keys[name]) - len(found))

        def titles(name: str) -> list[str]:
            if name not in lists:
                return [name]
            return [f"{name}{i}{key}" for i in range(1, width[name] + 1) for key in keys[name]]

        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([title for name in columns for title in titles(name)])
        writer.writerows([cell for name in columns for cell in cells(row, name)] for row in self._rows)
        return text.getvalue()

    def _json(self) -> str:
        return to_json(self._rows)

    def _jsonl(self) -> str:
        return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in self._rows)

    def _write_parquet(self, path: Path) -> None:
        import pyarrow.parquet as pq

        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                pq.write_table(self.to_table(), partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)


def predict(
    bundle: Bundle | str | Path,
    inputs: Any,
    *,
    batch_size: int = 32,
    recursive: bool = True,
    engine: str = "auto",
    save: str | Path | None = None,
) -> Predictions:
    """Predict for examples of the kind the bundle's task takes; one row an example, in order.

    Inputs are one of these, or a list (any iterable) of them, mixed as you like. Of images:

    - a path of a file; of a folder: all image files in it, sorted, hidden ones left out; a glob: all files it
      matches, sorted (``**`` goes into sub-folders);
    - encoded bytes, a PIL image, or a ``{"bytes", "path"}`` record of `datasets`;
    - a NumPy array, uint8 or uint16, channels last: `(H, W)`, `(H, W, C)` or a batch `(N, H, W, C)`;
    - a PyTorch tensor, uint8, channels first: `(H, W)`, `(C, H, W)` or a batch `(N, C, H, W)`.

    Of recordings: paths, folders, globs, encoded bytes, ``{"array", "sampling_rate"}`` records. Of texts:
    strings and bytes, and as `pathlib.Path` files, tables, folders and globs. Of rows: tables,
    ``{column: value}`` records, data frames.

    Channels of images must be 1, 3, 4 or as many as the bundle's network takes, at the place named: a shape
    that does not say so is refused, never guessed at.

    Args:
        bundle: a loaded bundle or its folder.
        inputs: as above.
        batch_size: examples in memory and through the network at once.
        recursive: whether a folder's sub-folders are searched too.
        engine: ``auto`` is the choice of `reskit.optimize` where it ran on this machine, else ``eager``, the
            float32 network in PyTorch; a goal (``latency``, ``throughput``, ``memory``, ``size``) its choice
            for that.
        save: a folder for the pictures an answer is, such as masks or restored images; rows then name them.

    Returns:
        The rows. A missing or unreadable example, or one thing among others that holds none, has a row
        that says so in its place.

    Raises:
        DataError: there is no input at all: an empty folder, a glob without a match, an unusable array.
        ConfigError: `batch_size` is not positive, or there is no such engine.
        BundleError: `bundle` is a folder that holds no good bundle.
        BackendError: there is no plan for this machine, or its files are damaged.
        OutputError: the file system refuses a picture.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    rows = predict_rows(bundle, inputs, batch_size=batch_size, recursive=recursive, engine=engine, save=save)
    return Predictions(rows, bundle.task)


def predict_rows(
    bundle: Bundle | str | Path,
    inputs: Any,
    *,
    batch_size: int = 32,
    recursive: bool = True,
    engine: str = "auto",
    save: str | Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of `predict` as they come; only one batch is in memory at any time."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size!r}: give a whole number of at least 1")
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    bundle.task.check_installed()
    entries = bundle.task.find(inputs, recursive)
    folder = None if save is None else Path(save)
    return _rows(bundle.task, entries, answers(bundle, engine), batch_size, folder)


def _rows(
    task: Task, entries: Iterator[Found], answer: Answers, batch_size: int, folder: Path | None
) -> Iterator[dict[str, Any]]:
    taken: set[str] = set()
    while batch := list(islice(entries, batch_size)):
        read = [_read(task, entry) for entry in batch]
        answered = iter(_answered(task, [image for image in read if isinstance(image, Tensor)], answer))
        for entry, image in zip(batch, read, strict=True):
            name = _encodable(entry.name)
            outputs = next(answered) if isinstance(image, Tensor) else None
            error = image if isinstance(image, str) else None
            if outputs is not None and not outputs.isfinite().all():
                error = "the network's output is not finite: its weights are damaged"
            if error is not None or outputs is None or isinstance(image, str):
                yield {"input": name, **task.blank, "error": _encodable(error or "")}
                continue
            row = {"input": name, **task.decode(outputs)[0], "error": None}
            if folder is not None:
                row |= _saved(task.pictures(image, outputs), folder, _stem(name, taken))
            yield row


def _read(task: Task, entry: Found) -> Tensor | str:
    """Return an example as the task reads it, an image as uint8 `(C, h, w)`, or why it cannot be read."""
    if entry.error is not None:
        return entry.error
    try:
        return task.read(entry.item)
    except DataError as error:
        return str(error)
    except Exception as error:  # decoders raise anything on hostile bytes; one file must not end a long run
        return f"cannot read {entry.name}: {type(error).__name__}: {error}"


def _answered(task: Task, images: list[Tensor], answer: Answers) -> Iterator[Tensor]:
    """Yield the outputs of each example, a batch of one; those of one size are answered together."""
    for _, group in groupby(images, key=lambda image: image.shape):
        outputs = task.outputs(answer, torch.stack(list(group)))
        yield from (outputs[place : place + 1] for place in range(len(outputs)))


def _stem(name: str, taken: set[str]) -> str:
    """Return a file name for what belongs to an input, another for each."""
    stem = re.sub(r"[^\w.-]+", "_", Path(name).stem) or "input"
    for number in count():
        found = f"{stem}-{number}" if number else stem
        if found not in taken:
            taken.add(found)
            return found
    raise AssertionError


def _saved(pictures: Mapping[str, np.ndarray | PILImage], folder: Path, stem: str) -> dict[str, str]:
    """Write pictures as PNG; return their paths by name."""
    from PIL import Image

    written = {}
    for name, pixels in pictures.items():
        path = folder / f"{stem}-{name}.png"
        with atomic_file(path) as staging:
            picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
            picture.save(staging, format="PNG")
        written[name] = str(path)
    return written


def _by_suffix(item: Any) -> dict[str, Any]:
    """Return the values of an item of a list by what their columns in a CSV file end in."""
    return {f"_{key}": value for key, value in item.items()} if isinstance(item, Mapping) else {"": item}


def _printable(text: str) -> str:
    """Return text with line breaks and terminal controls shown as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _encodable(text: str) -> str:
    """Return text that UTF-8 can hold; bytes of a file name that are not UTF-8 are shown as escapes."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")
