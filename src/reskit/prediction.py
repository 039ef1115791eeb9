"""What does a bundle say of these images? Files, folders, globs, arrays, tensors and PIL images alike."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from reskit.backends.answers import Answers, answers
from reskit.bundle import Bundle
from reskit.errors import ConfigError, DataError
from reskit.files import to_json, write_text, writing
from reskit.inputs import FoundImage, find_images

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["OUTPUT_FORMATS", "Predictions", "predict", "predict_rows"]

OUTPUT_FORMATS = (".csv", ".json", ".jsonl", ".parquet")
"""Suffixes `Predictions.write` knows."""

_ROWS_IN_TEXT, _ROWS_IN_TABLE = 10, 20


class Predictions(Sequence[dict[str, Any]]):
    """One row an input, in the order given.

    A row has the keys input (a path, or a place such as ``inputs[3]`` of what was passed), label, confidence
    (probability of the label), top (up to five ``{"label", "probability"}``, most probable first) and error
    (None, or why there is no prediction: label and confidence are then None and top is empty).

    Args:
        rows: as `predict_rows` yields them.
    """

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._rows = list(rows)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Predictions: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | Predictions:
        return Predictions(self._rows[place]) if isinstance(place, slice) else self._rows[place]

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Predictions) and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]

    @property
    def errors(self) -> Predictions:
        """The rows without a prediction."""
        return Predictions(row for row in self._rows if row["error"] is not None)

    def write(self, path: str | Path) -> Path:
        """Write all rows, whole or not at all, in the format the suffix names.

        ``.json`` is a list of rows, ``.jsonl`` a row a line, ``.parquet`` has `top` as a list of structs. In
        ``.csv`` `top` is spread over the columns ``top1_label, top1_probability, top2_label, ...``; an empty
        field stands for None.

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
        """Return the rows as a pyarrow table with the columns input, label, confidence, top and error."""
        import pyarrow as pa

        candidate = pa.struct([("label", pa.string()), ("probability", pa.float64())])
        schema = pa.schema(
            [
                ("input", pa.string()),
                ("label", pa.string()),
                ("confidence", pa.float64()),
                ("top", pa.list_(candidate)),
                ("error", pa.string()),
            ]
        )
        return pa.Table.from_pylist(self._rows, schema=schema)

    def __repr__(self) -> str:
        good = len(self) - len(self.errors)
        lines = [f"Predictions: {good} of {len(self)} inputs read"]
        lines += [f"  {_printable(row['input'])}: {_in_words(row)}" for row in self._rows[:_ROWS_IN_TEXT]]
        left = len(self) - _ROWS_IN_TEXT
        return "\n".join(lines + [f"  ... and {left:,} more"] * (left > 0))

    def __rich__(self) -> Table:
        """Return the first rows as a table for the terminal."""
        left = len(self) - _ROWS_IN_TABLE
        table = Table(caption=f"... and {left:,} more" if left > 0 else None, caption_justify="left")
        table.add_column("input", overflow="fold")
        table.add_column("prediction", overflow="fold")
        table.add_column("confidence", justify="right", no_wrap=True)
        table.add_column("next", style="dim", overflow="fold")
        for row in self._rows[:_ROWS_IN_TABLE]:
            name = Text(_printable(row["input"]))
            if row["error"] is not None:
                table.add_row(name, Text(_printable(row["error"]), style="red"), "", "")
            else:
                table.add_row(
                    name, Text(_printable(row["label"])), f"{row['confidence']:.1%}", Text(_next(row))
                )
        return table

    def _csv(self) -> str:
        width = max((len(row["top"]) for row in self._rows), default=0)
        spread = [f"top{i}_{what}" for i in range(1, width + 1) for what in ("label", "probability")]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["input", "label", "confidence", *spread, "error"])
        for row in self._rows:
            top = [value for item in row["top"] for value in (item["label"], item["probability"])]
            top += [None] * (2 * width - len(top))
            writer.writerow([row["input"], row["label"], row["confidence"], *top, row["error"]])
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
) -> Predictions:
    """Predict for images of any kind; one row an image, in order.

    Inputs are one of these, or a list (any iterable) of them, mixed as you like:

    - a path of a file; of a folder: all image files in it, sorted, hidden ones left out; a glob: all files it
      matches, sorted (``**`` goes into sub-folders);
    - encoded bytes, a PIL image, or a ``{"bytes", "path"}`` record of `datasets`;
    - a NumPy array, uint8 or uint16, channels last: `(H, W)`, `(H, W, C)` or a batch `(N, H, W, C)`;
    - a PyTorch tensor, uint8, channels first: `(H, W)`, `(C, H, W)` or a batch `(N, C, H, W)`.

    Channels must be 1, 3, 4 or as many as the bundle's network takes, at the place named: a shape that
    does not say so is refused, never guessed at.

    Args:
        bundle: a loaded bundle or its folder.
        inputs: as above.
        batch_size: images in memory and through the network at once.
        recursive: whether a folder's sub-folders are searched too.
        engine: ``auto`` is the choice of `reskit.optimize` where it ran on this machine, else ``eager``, the
            float32 network in PyTorch; a goal (``latency``, ``throughput``, ``memory``, ``size``) its choice
            for that.

    Returns:
        The rows. A missing or unreadable image, or one thing among others that holds none, has a row
        that says so in its place.

    Raises:
        DataError: there is no input at all: an empty folder, a glob without a match, an unusable array.
        ConfigError: `batch_size` is not positive, or there is no such engine.
        BundleError: `bundle` is a folder that holds no good bundle.
        BackendError: there is no plan for this machine, or its files are damaged.
    """
    return Predictions(
        predict_rows(bundle, inputs, batch_size=batch_size, recursive=recursive, engine=engine)
    )


def predict_rows(
    bundle: Bundle | str | Path,
    inputs: Any,
    *,
    batch_size: int = 32,
    recursive: bool = True,
    engine: str = "auto",
) -> Iterator[dict[str, Any]]:
    """Yield the rows of `predict` as they come; only one batch is in memory at any time."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size!r}: give a whole number of at least 1")
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    entries = find_images(inputs, bundle.task.preprocess.channels, recursive)
    return _rows(bundle, entries, answers(bundle, engine), batch_size)


def _rows(
    bundle: Bundle, entries: Iterator[FoundImage], answer: Answers, batch_size: int
) -> Iterator[dict[str, Any]]:
    while batch := list(islice(entries, batch_size)):
        read = [_read(bundle, entry) for entry in batch]
        records = iter(_decode(bundle, [image for image in read if isinstance(image, Tensor)], answer))
        for entry, image in zip(batch, read, strict=True):
            record = next(records) if isinstance(image, Tensor) else image
            name = _encodable(entry.name)
            if isinstance(record, str):
                yield {
                    "input": name,
                    "label": None,
                    "confidence": None,
                    "top": [],
                    "error": _encodable(record),
                }
            else:
                yield {"input": name, **record, "error": None}


def _read(bundle: Bundle, entry: FoundImage) -> Tensor | str:
    """Return the image, uint8 `(C, H, W)`, or why it cannot be read."""
    if entry.error is not None:
        return entry.error
    try:
        return bundle.task.preprocess.read(entry.item)
    except DataError as error:
        return str(error)
    except Exception as error:  # decoders raise anything on hostile bytes; one file must not end a long run
        return f"cannot read image {entry.name}: {type(error).__name__}: {error}"


def _decode(bundle: Bundle, images: list[Tensor], answer: Answers) -> list[dict[str, Any] | str]:
    """Return the record of each image, or why there is none."""
    if not images:
        return []
    outputs = answer(torch.stack(images))
    finite = outputs.flatten(1).isfinite().all(dim=1).tolist()
    return [
        record if good else "the network's output is not finite: its weights are damaged"
        for record, good in zip(bundle.task.decode(outputs), finite, strict=True)
    ]


def _next(row: Mapping[str, Any]) -> str:
    """Return the second and third most probable labels in words."""
    return ", ".join(f"{_printable(item['label'])} {item['probability']:.1%}" for item in row["top"][1:3])


def _in_words(row: Mapping[str, Any]) -> str:
    if row["error"] is not None:
        return f"error: {_printable(row['error'])}"
    others = f" ({_next(row)})" if len(row["top"]) > 1 else ""
    return f"{_printable(row['label'])} {row['confidence']:.1%}{others}"


def _printable(text: str) -> str:
    """Return text with line breaks and terminal controls shown as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _encodable(text: str) -> str:
    """Return text that UTF-8 can hold; bytes of a file name that are not UTF-8 are shown as escapes."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")
