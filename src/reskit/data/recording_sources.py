"""Labelled recordings, wherever they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import datasets
import numpy as np

from reskit.data.column import Column
from reskit.data.recordings import AUDIO_SUFFIXES, Heard, heard
from reskit.data.split import LabelledSplit, Split
from reskit.errors import DataError

__all__ = ["RECORDINGS", "RecordingSplit"]


class RecordingSplit(LabelledSplit):
    """Recordings with one class each."""

    what: ClassVar[str] = "recording"

    @classmethod
    def undecoded(cls, dataset: datasets.Dataset, column: str) -> datasets.Dataset:
        """See `Split.undecoded`."""
        if isinstance(dataset.features[column], datasets.Audio):
            return dataset.cast_column(column, datasets.Audio(decode=False))
        return dataset

    @cached_property
    def heard(self) -> list[Heard]:
        """What the headers say of all recordings, or of a seeded sample of 2,000."""
        found, bad = [], {}
        rows = self.sampled()
        for row, item in zip(rows.tolist(), self.items(rows), strict=True):
            try:
                found.append(heard(item))
            except DataError as error:
                bad[row] = str(error)
        self.reject(bad)
        return found

    @property
    def rate(self) -> int:
        """The most frequent rate, in samples a second."""
        return Counter(one.rate for one in self.heard).most_common(1)[0][0]

    @staticmethod
    def measured(splits: Sequence[Split]) -> dict[str, Any]:
        """See `Split.measured`."""
        every = [one for split in splits if isinstance(split, RecordingSplit) for one in split.heard]
        if not every:
            raise DataError("the data hold no readable recording")
        seconds = [one.seconds for one in every]
        rates = sorted({one.rate for one in every})
        said = f"{rates[0]:,}" if len(rates) == 1 else f"{rates[0]:,} to {rates[-1]:,}"
        middle = float(np.median(seconds))
        return {
            "extent": f"recordings of {min(seconds):.2f} to {max(seconds):.2f} s, half of them below"
            f" {middle:.2f} s, {said} samples a second"
        }

    def usual_seconds(self) -> float:
        """Return how long 95 % of the recordings last at most."""
        return float(np.quantile([one.seconds for one in self.heard], 0.95))


RECORDINGS = Column(
    what="recording",
    names=(
        *("audio", "recording", "sound", "speech", "wav", "flac", "mp3", "ogg", "audio_path", "filename"),
        *("file_name", "filepath", "file_path", "file", "path"),
    ),
    suffixes=AUDIO_SUFFIXES,
    split=RecordingSplit,
    feature=datasets.Audio,
)
