"""Reading recordings of sound."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reskit.data.images import item_name
from reskit.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import soundfile

__all__ = ["AUDIO_SUFFIXES", "Heard", "Sound", "heard", "read_sound"]

AUDIO_SUFFIXES = frozenset({".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".wav"})
_RATES = (1_000, 384_000)
_MOST_CHANNELS = 32
_BLOCK = 1 << 16
_UNKNOWN = 1 << 40
"""Frames that no file has."""


class Heard(NamedTuple):
    """What a header says of a recording: samples a second, and how many seconds."""

    rate: int
    seconds: float


class Sound(NamedTuple):
    """One channel of sound, samples `(S,)` from -1 to 1, and how many there are a second."""

    samples: npt.NDArray[np.float32]
    rate: int


def heard(item: Any) -> Heard:
    """Return what the header of a recording says.

    Raises:
        DataError: it is missing, or of a kind that cannot be read.
    """
    with _opened(item) as file:
        return Heard(file.samplerate, file.frames / file.samplerate)


def read_sound(item: Any, most: float) -> Sound:
    """Read a recording; the middle of one that is longer than `most` seconds, and nothing besides.

    Channels become their mean.

    Args:
        item: a path, encoded bytes, a ``{"bytes", "path"}`` record of `datasets`, or a
            ``{"array", "sampling_rate"}`` record, samples from -1 to 1, `(S,)` or `(channels, S)`.
        most: seconds.

    Raises:
        DataError: it is missing, truncated to nothing, or of a kind that cannot be read.
    """
    if isinstance(item, Mapping) and item.get("array") is not None:
        return _of_array(item, most)
    with _opened(item) as file:
        wanted = min(file.frames, round(most * file.samplerate))
        try:
            if wanted < file.frames:
                file.seek((file.frames - wanted) // 2)
            blocks = file.blocks(_BLOCK, frames=wanted, dtype="float32", always_2d=True)
            samples = np.concatenate([block.mean(1) for block in blocks] or [np.zeros(0, np.float32)])
        except RuntimeError as error:  # soundfile's errors are children of it
            raise DataError(f"cannot read {_name(item)}: {_reason(error)}") from None
        return _checked(samples, file.samplerate, item)


def _of_array(item: Mapping[str, Any], most: float) -> Sound:
    rate = item.get("sampling_rate")
    if not isinstance(rate, int | float) or not _RATES[0] <= rate <= _RATES[1]:
        raise DataError(f"sampling_rate is {rate!r}: give samples a second, {_RATES[0]:,} to {_RATES[1]:,}")
    samples = np.asarray(item["array"])
    if samples.dtype.kind != "f" or samples.ndim not in (1, 2) or 0 in samples.shape:
        raise DataError(
            f"the array is {samples.dtype} of shape {samples.shape}: give float samples from -1 to 1, (S,) or"
            " (channels, S)"
        )
    wanted = min(samples.shape[-1], round(most * rate))
    first = (samples.shape[-1] - wanted) // 2
    cut = np.atleast_2d(samples)[:, first : first + wanted]
    return _checked(cut.mean(0).astype(np.float32), round(rate), item)


def _checked(samples: npt.NDArray[np.float32], rate: int, item: Any) -> Sound:
    if not len(samples):
        raise DataError(f"cannot read {_name(item)}: it holds no sound")
    if not np.isfinite(samples).all():
        raise DataError(f"cannot read {_name(item)}: it has samples that are not finite")
    return Sound(samples, rate)


@contextmanager
def _opened(item: Any) -> Iterator[soundfile.SoundFile]:
    """Open a recording; its samples are not read.

    Raises:
        DataError: it is missing, or of a kind that cannot be read.
        MissingExtraError: soundfile is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError):  # the latter where libsndfile is missing
        raise MissingExtraError("soundfile", "audio") from None
    name = _name(item)
    held = item
    if isinstance(item, Mapping):
        held = item["bytes"] if item.get("bytes") is not None else item.get("path")
    if not isinstance(held, str | Path | bytes | bytearray):
        raise DataError(
            f"cannot read a recording from {type(item).__name__}: give a path, encoded bytes, or"
            " {'array': samples, 'sampling_rate': rate}"
        )
    try:
        # The whole file is read: libsndfile would be asked by name, and says little of one that is not there.
        content = Path(held).read_bytes() if isinstance(held, str | Path) else bytes(held)
        file = soundfile.SoundFile(io.BytesIO(content))
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise DataError(f"cannot read {name}: {why}") from None
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"cannot read {name}: {_reason(error)}") from None
    with file:
        if not _RATES[0] <= file.samplerate <= _RATES[1] or file.channels > _MOST_CHANNELS:
            raise DataError(
                f"cannot read {name}: it has {file.samplerate:,} samples a second in {file.channels} channels"
            )
        if file.frames < 1:
            raise DataError(f"cannot read {name}: it holds no sound")
        if file.frames > _UNKNOWN:
            raise DataError(
                f"cannot read {name}: it does not say how long it is, as what was written to a pipe; write"
                " it again to a file"
            )
        yield file


def _name(item: Any) -> str:
    name = item_name(item)
    return "the recording" if name.startswith("<") else f"recording {name}"


def _reason(error: BaseException) -> str:
    text = re.sub(r"^Error opening <.*?>: ", "", str(error))
    return (
        "not a sound file of a known format" if "not recognised" in text or not text else text.splitlines()[0]
    )
