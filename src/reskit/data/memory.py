"""A whole split decoded into memory, in parallel."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reskit.data.split import Split
from reskit.data.transforms import ImagePreprocess
from reskit.errors import DataError

__all__ = ["DecodedSplit", "decode_split", "over_rows", "processors", "verify_split"]

_CHUNK = 64


@dataclass(frozen=True)
class DecodedSplit:
    """Images and labels of a split in memory.

    Attributes:
        images: uint8 ``(N, H, W, C)``, contiguous; ``images.permute(0, 3, 1, 2)`` is channels last.
        labels: int64 ``(N,)``; -1 where there is none.
        rows: row number in the split of each image, int64 ``(N,)``.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor


def decode_split(split: Split, preprocess: ImagePreprocess, *, workers: int | None = None) -> DecodedSplit:
    """Decode a split into memory, each image once, in threads (decoding and scaling free the interpreter).

    Unreadable images are found here, as they are decoded, and dealt with as the split says.

    Args:
        split: what to decode.
        preprocess: how.
        workers: threads; the number of processors by default.

    Raises:
        DataError: unreadable images, and the split refuses them.
    """
    rows = split.rows.copy()
    height, width = preprocess.size
    images = torch.empty(len(rows), height, width, preprocess.channels, dtype=torch.uint8)

    def read(place: int, item: Any) -> None:
        images[place] = preprocess.read(item).permute(1, 2, 0)

    bad = over_rows(split, rows.tolist(), read, workers)
    split.reject({int(rows[place]): reason for place, reason in bad.items()})
    if bad:
        good = torch.ones(len(rows), dtype=torch.bool)
        good[list(bad)] = False
        images = images[good]
    return DecodedSplit(images, torch.from_numpy(split.labels), torch.from_numpy(split.rows.copy()))


def verify_split(split: Split, preprocess: ImagePreprocess, *, workers: int | None = None) -> None:
    """Decode every image of a split once and drop the pixels, to know the unreadable ones before streaming.

    The order of a streamed epoch is a function of the number of images, so this cannot wait until
    an image turns up. The outcome is kept in ``split.cache_dir`` under the split's fingerprint.

    Raises:
        DataError: unreadable images, and the split refuses them.
    """
    record = split.cache_dir / "reskit-verified" / f"{split.fingerprint}-{preprocess.channels}.json"
    try:
        bad = {int(row): str(reason) for row, reason in json.loads(record.read_text()).items()}
    except (OSError, ValueError):
        rows = split.rows.tolist()
        places = over_rows(split, rows, lambda _, item: preprocess.decode(item), workers)
        bad = {rows[place]: reason for place, reason in places.items()}
        _write(record, json.dumps(bad))
    split.reject(bad)


def processors() -> int:
    """Return how many processors this process may use, which in a container is fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(record: Path, text: str) -> None:
    """Keep a record if the cache can be written; without it the next run just checks again."""
    partial = record.with_suffix(f".{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        partial.replace(record)
    except OSError:
        return


def over_rows(
    split: Split, rows: Sequence[int], work: Callable[[int, Any], object], workers: int | None
) -> dict[int, str]:
    """Call ``work(place, item)`` for every row in threads; return what went wrong, by place."""

    def chunk(start: int) -> dict[int, str]:
        bad: dict[int, str] = {}
        for place, item in enumerate(split.items(rows[start : start + _CHUNK]), start):
            try:
                work(place, item)
            except DataError as error:
                bad[place] = str(error)
        return bad

    with ThreadPoolExecutor(workers or processors()) as pool:
        results = list(pool.map(chunk, range(0, len(rows), _CHUNK)))
    return {place: reason for result in results for place, reason in result.items()}
