"""Recordings: how they are read, and the picture they become."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

from reskit.data import open_source
from reskit.data.audio import AudioPreprocess, mel_filters
from reskit.data.recording_sources import RECORDINGS, RecordingSplit
from reskit.data.recordings import heard, read_sound
from reskit.errors import DataError, MissingExtraError

RATE = 8000


def preprocess(**changes: Any) -> AudioPreprocess:
    settings: dict[str, Any] = {"rate": RATE, "seconds": 0.5, "window": 200, "hop": 80, "low": 20.0}
    settings |= {"high": settings["rate"] / 2, "channels": 1, "mean": (0.5,), "std": (0.5,), **changes}
    moments = 1 + round(settings["seconds"] * settings["rate"]) // settings["hop"]
    return AudioPreprocess(size=(32, moments), **settings)


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def encoded(samples: np.ndarray, rate: int = RATE, **how: str) -> bytes:
    held = io.BytesIO()
    soundfile.write(held, samples, rate, **{"format": "WAV", **how})
    return held.getvalue()


def test_the_picture_is_that_of_an_independent_reference() -> None:
    """SciPy's short-time spectra, filters added up one by one."""
    settings, samples = preprocess(), np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    window = scipy.signal.get_window("hann", 200)
    spans = scipy.signal.ShortTimeFFT(
        np.pad(window, 156), hop=80, fs=RATE, mfft=512, scale_to=None, phase_shift=None
    )
    spectra = spans.stft(samples, p0=0, p1=settings.size[1])
    power = np.abs(spectra) ** 2
    edges = [
        700 * (10 ** (m / 2595) - 1)
        for m in np.linspace(*(2595 * math.log10(1 + f / 700) for f in (20, 4000)), 34)
    ]
    expected = np.zeros(settings.size)
    for band in range(32):
        left, middle, right = edges[band : band + 3]
        for place in range(257):
            hertz = place * RATE / 512
            weight = min((hertz - left) / (middle - left), (right - hertz) / (right - middle))
            expected[band] += max(0.0, weight) * power[place]
    decibels = np.maximum(10 * np.log10(expected / expected.max()), -80)
    levels = np.round((decibels + 80) * 255 / 80)[::-1]
    found = settings.read({"array": samples, "sampling_rate": RATE})[0].numpy()
    assert found.shape == settings.size
    assert np.abs(found.astype(float) - levels).max() <= 1


def test_low_frequencies_are_below_and_loudness_says_nothing() -> None:
    settings = preprocess()
    low = settings.read(encoded(tone(200)))[0].float().mean(1)
    high = settings.read(encoded(tone(3000)))[0].float().mean(1)
    assert low.argmax() > 24
    assert high.argmax() < 8
    samples = {"array": tone(700).astype(np.float32), "sampling_rate": RATE}
    quiet = {**samples, "array": samples["array"] / 100}
    assert (settings.read(samples).int() - settings.read(quiet).int()).abs().max() <= 1


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"subtype": "PCM_U8"},
        {"subtype": "PCM_24"},
        {"subtype": "FLOAT"},
        {"format": "FLAC"},
        {"format": "OGG"},
    ],
)
def test_any_format_gives_the_same_picture(how: dict[str, str]) -> None:
    settings = preprocess()
    expected = settings.read({"array": tone(1000).astype(np.float32), "sampling_rate": RATE}).float()
    found = settings.read(encoded(tone(1000), **how)).float()
    loud = expected > 160
    assert (found - expected)[loud].abs().mean() < 4


def test_other_rates_and_channels() -> None:
    settings = preprocess()
    expected = settings.read(encoded(tone(1000))).float()
    stereo = np.stack([tone(1000, rate=22050)] * 2, 1)
    found = settings.read(encoded(stereo, 22050)).float()
    loud = expected > 160
    assert (found - expected)[loud].abs().mean() < 4


def test_short_ones_get_silence_and_of_long_ones_the_middle_is_heard() -> None:
    settings = preprocess()
    short = settings.read(encoded(tone(1000, 0.1)))[0].float().mean(0)
    assert short[:15].max() == short[-15:].max() == 0
    assert short[25] > 20
    long = np.concatenate([tone(300, 2), tone(3000, 0.6), tone(300, 2)])
    bands = settings.read(encoded(long))[0].float().mean(1)
    assert bands.argmax() < 8
    assert settings.read(encoded(np.zeros(400))).max() == 0


def test_no_more_is_read_than_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    read = soundfile.SoundFile.read

    def counted(file: Any, frames: int, *rest: Any, **options: Any) -> Any:
        asked.append(frames)
        return read(file, frames, *rest, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    silence = np.zeros((RATE * 60, 8))
    assert len(read_sound(encoded(silence, format="FLAC"), 20).samples) == RATE * 20
    assert sum(asked) == RATE * 20
    assert max(asked) <= 1 << 16  # a block at once, whose channels are then one


def test_a_file_that_does_not_say_how_long_it_is() -> None:
    """What an encoder wrote to a pipe: the count of samples in the header of FLAC is 0."""
    data = bytearray(encoded(tone(1000), format="FLAC"))
    at = data.index(b"fLaC") + 8 + 13
    data[at] &= 0xF0
    data[at + 1 : at + 5] = bytes(4)
    with pytest.raises(DataError, match="the recording: it does not say how long it is"):
        preprocess().read(bytes(data))


def test_rates_without_a_common_measure_take_no_time() -> None:
    began = time.perf_counter()
    found = preprocess().read(encoded(tone(1000, rate=383_987), 383_987)).float()
    assert time.perf_counter() - began < 2
    loud = (expected := preprocess().read(encoded(tone(1000))).float()) > 160
    assert (found - expected)[loud].abs().mean() < 4


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (b"", "not a sound file"),
        (b"RIFF" + bytes(100), "cannot read the recording"),
        (encoded(np.zeros(0)), "no sound"),
        (encoded(np.zeros(10), 7), "7 samples a second"),
        (np.zeros(4), "cannot read a recording from ndarray"),
        ({"array": np.zeros(4), "sampling_rate": None}, "sampling_rate is None"),
        ({"array": np.zeros(4), "sampling_rate": 1e9}, "sampling_rate"),
        ({"array": np.zeros(4, np.int16), "sampling_rate": RATE}, "float samples"),
        ({"array": np.full(4, np.nan), "sampling_rate": RATE}, "not finite"),
        (Path("nowhere.wav"), "nowhere.wav: no such file"),
    ],
)
def test_what_cannot_be_read(item: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        preprocess().read(item)


def test_a_truncated_file_is_read_as_far_as_it_goes() -> None:
    whole = encoded(tone(1000))
    assert preprocess().read(whole[: len(whole) // 2]).max() == 255
    with pytest.raises(DataError):
        preprocess().read(whole[:44])


@pytest.mark.parametrize(
    "change", [{"high": 5000.0}, {"low": 5000.0}, {"seconds": 0}, {"rate": 1}, {"channels": 3}, {"hop": 0}]
)
def test_settings_that_make_no_sense(change: dict[str, Any]) -> None:
    good = preprocess().model_dump()
    with pytest.raises(ValueError, match="validation error"):
        AudioPreprocess.model_validate({**good, **change})


def test_filters_cover_all_frequencies() -> None:
    filters = mel_filters(preprocess())
    assert (filters.sum(1) > 0).all()
    assert torch.equal(preprocess().read(encoded(tone(500))), preprocess().read(encoded(tone(500))))


def test_it_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r"reskit\[audio\]"):
        heard(b"RIFF")


def test_folders_of_recordings(tmp_path: Path) -> None:
    for name, hertz in (("low", 200), ("high", 2000)):
        for number in range(4):
            place = tmp_path / name / f"{number}.wav"
            place.parent.mkdir(exist_ok=True)
            soundfile.write(place, tone(hertz, 0.2 + 0.1 * number), RATE)
    source = open_source(tmp_path, examples=RECORDINGS)
    split = source["train"]
    assert isinstance(split, RecordingSplit)
    assert split.rate == RATE
    assert "recordings of 0.20 to 0.50 s" in source.describe().lines()[1]
    (tmp_path / "low" / "0.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"unreadable recording.*0\.wav"):
        open_source(tmp_path, examples=RECORDINGS).describe()
    skipped = open_source(tmp_path, examples=RECORDINGS, on_corrupt="skip").describe()
    assert len(skipped.corrupt) == 1
