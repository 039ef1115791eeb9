"""What people send to a model, opened as what it takes: images, recordings, texts and tables."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from PIL import Image

from reskit.data.delimited import iter_table, separator_of
from reskit.data.images import HEADER_ERRORS
from reskit.data.texts import TextPreprocess, read_text
from reskit.errors import DataError
from reskit.serving.faults import BadRequestError, TooLargeError
from reskit.tasks import Task

__all__ = ["MOST_ROWS", "Item", "Sent", "open_image", "open_sent"]

MOST_ROWS = 1000
"""Rows of one table that are answered; more are sent in several."""

# Those whose decoders are in Pillow itself and start no program, as that of EPS does.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class Sent(NamedTuple):
    """One thing that was sent: its name, and a file's bytes, or a text or the cells of a row in JSON.

    It is never taken for the name of a file.
    """

    name: str
    content: bytes | str | Mapping[str, Any]


class Item(NamedTuple):
    """One example of what was sent: its name, and what the task reads."""

    name: str
    content: Any


def open_sent(sent: Sent, task: Task, max_pixels: int) -> list[Item]:
    """Return the examples that were sent at once: the rows of a table, else one.

    Args:
        sent: by a client.
        task: of the model.
        max_pixels: of an image.

    Raises:
        TooLargeError: an image of more pixels, or a table of more rows, than is taken.
        BadRequestError: it is not what the model takes.
    """
    try:
        return _OPENERS[task.takes](sent, task, max_pixels)
    except DataError as error:
        raise BadRequestError(str(error)) from None


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image that was sent; its header is read, its pixels are not.

    Raises:
        TooLargeError: it has more pixels than `max_pixels`.
        BadRequestError: it is no image of a format that is taken.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    except HEADER_ERRORS as error:
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            raise TooLargeError(f"the image has too many pixels: {error}") from None
        raise BadRequestError(f"not an image of one of the formats {', '.join(_FORMATS)}") from None
    if picture.width * picture.height > max_pixels:
        raise TooLargeError(
            f"the image has {picture.width} x {picture.height} pixels, this service takes {max_pixels:,}"
        )
    return picture


def _image(sent: Sent, task: Task, max_pixels: int) -> list[Item]:
    return [Item(sent.name, open_image(_bytes_of(sent, "an image"), max_pixels))]


def _recording(sent: Sent, task: Task, max_pixels: int) -> list[Item]:
    return [Item(sent.name, _bytes_of(sent, "a recording"))]


def _text(sent: Sent, task: Task, max_pixels: int) -> list[Item]:
    assert isinstance(task.preprocess, TextPreprocess)
    if isinstance(sent.content, Mapping):
        return [Item(sent.name, sent.content[task.preprocess.column_in(sent.content, sent.name)])]
    rows = _rows_of(sent)
    if rows is None:
        return [Item(sent.name, read_text(sent.content))]
    column = task.preprocess.column_in(rows[0], sent.name)
    return [Item(f"{sent.name} row {number}", row[column]) for number, row in enumerate(rows, 1)]


def _table(sent: Sent, task: Task, max_pixels: int) -> list[Item]:
    if isinstance(sent.content, Mapping):
        return [Item(sent.name, sent.content)]
    rows = _rows_of(sent, always=True)
    assert rows is not None
    return [Item(f"{sent.name} row {number}", row) for number, row in enumerate(rows, 1)]


_OPENERS: Mapping[str, Callable[[Sent, Task, int], list[Item]]] = {
    "image": _image,
    "audio": _recording,
    "text": _text,
    "table": _table,
}


def _bytes_of(sent: Sent, what: str) -> bytes:
    if not isinstance(sent.content, bytes):
        raise BadRequestError(f"this model takes {what}: send a file, in JSON as base64")
    return sent.content


def _rows_of(sent: Sent, *, always: bool = False) -> list[dict[str, str]] | None:
    """Return the rows of a table, or None of what is not named as one and need not be.

    Raises:
        DataError: it is none.
        TooLargeError: it has too many.
    """
    separator = separator_of(sent.name)
    if separator is None and not always:
        return None
    assert not isinstance(sent.content, Mapping)
    if isinstance(sent.content, bytes) and sent.content.startswith(b"PAR1"):
        raise BadRequestError("Parquet is not taken here: send CSV")
    rows = list(islice(iter_table(read_text(sent.content), sent.name, separator or ","), MOST_ROWS + 1))
    if len(rows) > MOST_ROWS:
        raise TooLargeError(f"the table has more than {MOST_ROWS:,} rows: this service takes so many at once")
    return rows
