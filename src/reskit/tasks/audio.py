"""One label a recording: spoken words, machines that sound wrong, birds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from reskit.config import Recipe
from reskit.data import DataInfo
from reskit.data.audio import AudioPreprocess
from reskit.data.config import DataConfig
from reskit.errors import ConfigError
from reskit.inputs import Found
from reskit.inputs.recordings import find_recordings
from reskit.tasks.base import TASKS, TaskSettings, refuse_changed
from reskit.tasks.classify import Classify

if TYPE_CHECKING:
    from reskit.data import Source, Split

__all__ = ["Audio"]

_LONGEST = 10.0
_OF_PICTURES = ("flip", "dihedral", "random_resized_crop", "rotate", "elastic", "auto")


class AudioSettings(TaskSettings):
    """What a recipe may say of recordings."""

    rate: int | None = Field(
        None, ge=1_000, le=384_000, description="samples a second; the data's when absent"
    )
    seconds: float | None = Field(
        None, gt=0, le=600, description="of sound; as 95 % of the data last when absent, at most 10"
    )
    bands: int = Field(64, ge=8, le=512, description="mel bands")
    window: float = Field(25.0, gt=0, description="milliseconds of one spectrum")
    hop: float = Field(10.0, gt=0, description="milliseconds from one spectrum to the next")
    low: float = Field(20.0, ge=0, description="lowest frequency in Hz")
    high: float | None = Field(None, gt=0, description="highest frequency in Hz; half the rate when absent")


@TASKS.register("audio")
class Audio(Classify):
    """One class a recording, told of its spectrum over time as of a picture; see `AudioPreprocess`."""

    name = "audio"
    takes = "audio"
    for_instance = "recording.wav"
    needs: ClassVar[Mapping[str, str]] = {"soundfile": "audio"}
    Input = AudioPreprocess
    pipeline_tag = "audio-classification"
    Settings = AudioSettings
    settings: AudioSettings

    @classmethod
    def open(cls, data: DataConfig, *, seed: int) -> Source:
        """See `Task.open`."""
        from reskit.data.recording_sources import RECORDINGS
        from reskit.data.sources import open_labelled

        return open_labelled(data, seed=seed, examples=RECORDINGS)

    @classmethod
    def geometry(cls, recipe: Recipe, info: DataInfo, train: Split) -> AudioPreprocess:
        """Return the picture that `task.arguments` ask for; see `Task.geometry`."""
        from reskit.data.recording_sources import RecordingSplit

        asked = cls.read_settings(recipe)
        assert isinstance(train, RecordingSplit)
        refuse_changed(recipe.augment, _OF_PICTURES, "augment", "would make another sound of it")
        refuse_changed(
            recipe.preprocess,
            ("size", "resize", "interpolation", "crop_fraction"),
            "preprocess",
            "is for images; task.arguments say how a recording is read",
        )
        rate = asked.rate or train.rate
        usual = train.usual_seconds()
        seconds = asked.seconds or min(_LONGEST, max(0.1, round(usual + 0.05, 1)))
        window, hop = round(asked.window * rate / 1000), max(1, round(asked.hop * rate / 1000))
        high = asked.high or rate / 2
        try:
            return AudioPreprocess(
                size=(asked.bands, 1 + round(seconds * rate) // hop),
                channels=1,
                mean=(0.5,),
                std=(0.5,),
                rate=rate,
                seconds=seconds,
                window=window,
                hop=hop,
                low=asked.low,
                high=high,
            )
        except ValueError as error:
            said = str(error).splitlines()[2].strip() if len(str(error).splitlines()) > 2 else str(error)
            raise ConfigError(f"task.arguments: {said}") from None

    def find(self, inputs: Any, recursive: bool) -> Iterator[Found]:
        """See `Task.find`."""
        return find_recordings(inputs, recursive)
