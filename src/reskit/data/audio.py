"""From a recording to a network's input: the picture that its spectrum over time is."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from reskit.data.recordings import read_sound
from reskit.data.transforms import ImagePreprocess
from reskit.errors import DataError

__all__ = ["AudioPreprocess", "mel_filters"]

_FINEST = 1000
_LOUDNESS = 80.0
"""Decibels below the loudest place of a recording that are still told apart."""


class AudioPreprocess(ImagePreprocess):
    """A recording as a grey picture: frequencies, the low ones below, over time; louder is brighter.

    Power in bands that are triangles on the mel scale (O'Shaughnessy 1987: ``2595 log10(1 + f / 700)``), in
    decibels below the loudest place of the recording, of which 80 become 255 levels; so loudness as a whole
    says nothing. A shorter recording has silence on both sides, of a longer one the middle is taken.

    Attributes:
        rate: samples a second; recordings of another are resampled.
        seconds: of sound that the picture shows.
        window: samples of one spectrum, under a Hann window.
        hop: samples from one spectrum to the next.
        low: lowest frequency, in Hz.
        high: highest frequency, in Hz; half the rate at most.
    """

    rate: int = Field(ge=1_000, le=384_000)
    seconds: float = Field(gt=0, le=600)
    window: int = Field(ge=16)
    hop: int = Field(ge=1)
    low: float = Field(ge=0)
    high: float = Field(gt=0)

    @model_validator(mode="after")
    def _audible(self) -> AudioPreprocess:
        if not self.low < self.high <= self.rate / 2:
            raise ValueError(
                f"frequencies from {self.low:g} to {self.high:g} Hz: give a rising pair up to half the rate"
            )
        if self.channels != 1 or self.size[1] != 1 + self.length // self.hop:
            raise ValueError(f"a picture of {self.size} does not show {self.seconds:g} s")
        return self

    @property
    def length(self) -> int:
        """Samples that the picture shows."""
        return round(self.seconds * self.rate)

    @property
    def points(self) -> int:
        """Samples of one Fourier transform, zero beyond the window: fine enough for the lowest bands."""
        return int(2 ** (1 + math.ceil(math.log2(self.window))))

    def describe(self) -> str:
        """See `Preprocess.describe`."""
        return (
            f"{self.seconds:g} s of sound at {self.rate:,} samples a second, as {self.size[0]} mel bands over"
            f" {self.size[1]} moments"
        )

    def decode(self, item: Any) -> Tensor:
        """Return a recording as uint8 ``(1, bands, moments)``; see `read_sound` for what it may be.

        Raises:
            DataError: it cannot be read.
        """
        sound = read_sound(item, self.seconds)
        samples = torch.from_numpy(self._fitted(_resampled(sound.samples, sound.rate, self.rate)))
        spectrum = torch.stft(
            samples,
            n_fft=self.points,
            win_length=self.window,
            hop_length=self.hop,
            window=torch.hann_window(self.window),
            pad_mode="constant",
            return_complex=True,
        )
        power = torch.from_numpy(mel_filters(self)) @ spectrum.abs().square()
        loudest = float(power.max())
        if not math.isfinite(loudest):
            raise DataError("the samples of the recording are too large: they should be from -1 to 1")
        if loudest <= 0:  # silence
            return torch.zeros(1, *self.size, dtype=torch.uint8)
        decibels = 10 * torch.log10(torch.clamp(power / loudest, min=10 ** (-_LOUDNESS / 10)))
        levels = ((decibels + _LOUDNESS) * (255 / _LOUDNESS)).round().to(torch.uint8)
        return levels.flip(0)[None]

    def fit(self, image: Tensor) -> Tensor:
        """Return a picture as it is: it was made of the size wanted."""
        return image

    def _fitted(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the middle of samples, or samples with silence on both sides."""
        over = len(samples) - self.length
        if over >= 0:
            return samples[over // 2 : over // 2 + self.length]
        return np.pad(samples, (-over // 2, -over - -over // 2))


@lru_cache(maxsize=8)
def mel_filters(preprocess: AudioPreprocess) -> npt.NDArray[np.float32]:
    """Return the weights `(bands, points // 2 + 1)` of frequencies in mel bands, triangles of height 1."""
    to_mel, to_hz = 2595 / math.log(10), math.log(10) / 2595
    low, high = (to_mel * math.log(1 + hz / 700) for hz in (preprocess.low, preprocess.high))
    corners = 700 * np.expm1(to_hz * np.linspace(low, high, preprocess.size[0] + 2))
    hz = np.linspace(0, preprocess.rate / 2, preprocess.points // 2 + 1)
    rising = (hz - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - hz) / (corners[2:] - corners[1:-1])[:, None]
    filters: npt.NDArray[np.float32] = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    return filters


def _resampled(samples: npt.NDArray[np.float32], have: int, want: int) -> npt.NDArray[np.float32]:
    if have == want:
        return samples
    from scipy.signal import resample_poly

    # Rates without a common measure would need a filter of millions of taps, for a shift nobody hears.
    ratio = Fraction(want, have).limit_denominator(_FINEST)
    found: npt.NDArray[np.float32] = resample_poly(samples, ratio.numerator, ratio.denominator)
    return found.astype(np.float32)
