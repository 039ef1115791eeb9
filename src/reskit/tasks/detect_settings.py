"""What a recipe may say of detection."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from reskit.tasks.base import TaskSettings

__all__ = ["DetectSettings"]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class DetectSettings(TaskSettings):
    """What a recipe may say of detection."""

    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_several)] = Field(
        None, description="which of the data's classes to look for; all when absent"
    )
    score: float = Field(0.3, gt=0, lt=1, description="least score of a box that predict reports")
    overlap: float = Field(
        0.6, gt=0, lt=1, description="of two boxes of a class with a larger IoU the better one stays"
    )
    scale: tuple[float, float] | None = Field(
        None, description="scale jitter: a range of factors around the size that just fits"
    )
    views: int = Field(1, ge=1, description="times each image is seen in an epoch")
    scheme: str = Field(
        "fcos", description="what the network's outputs mean; in training the network says it"
    )
    levels: tuple[int, ...] = Field(
        (8, 16, 32, 64, 128), description="strides of the pyramid; in training the network says them"
    )

    @field_validator("scale")
    @classmethod
    def _rising(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not 0 < scale[0] <= scale[1]:
            raise ValueError(f"must be a rising pair of positive numbers, got {scale}")
        return scale
