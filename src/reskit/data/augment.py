"""Settings of the random variation of training images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["Augment"]

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Augment(BaseModel):
    """Random variation of training images; everything is off by default.

    Applied in this order: random resized crop, `auto` (streaming only), rotation and translation, bending,
    padded crop and flip, flips and turns, colour, erasing. Mixup and cutmix are recorded here and applied by
    the training loop.

    Attributes:
        flip: probability of mirroring left-right; True means 0.5.
        dihedral: one of the eight flips and quarter turns of a square.
        crop_padding: pixels added on each side before a random crop of the original size.
        padding_mode: what is added.
        random_resized_crop: range of the area taken, as part of the image (Szegedy et al. 2015).
        aspect: range of width / height of that area.
        rotate: largest angle in degrees, either way.
        translate: largest shift as part of each side, either way.
        elastic: standard deviation in pixels of nine random shifts, on a grid of 3 by 3 over the image,
            between which it bends (Ronneberger et al. 2015, section 3.1); 0 for none.
        color_jitter: brightness, contrast and saturation, each a largest relative change.
        erase: probability of erasing a rectangle (Zhong et al. 2017).
        auto: a published policy, image by image: TrivialAugment (Mueller and Hutter 2021) or RandAugment
            (Cubuk et al. 2019).
        mixup: alpha of mixup (Zhang et al. 2017), 0 for none.
        cutmix: alpha of CutMix (Yun et al. 2019), 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: Probability = 0.0
    dihedral: bool = False
    crop_padding: int = Field(default=0, ge=0)
    padding_mode: Literal["zero", "reflect"] = "zero"
    random_resized_crop: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    rotate: float = Field(default=0.0, ge=0.0, le=180.0)
    translate: Probability = 0.0
    elastic: float = Field(default=0.0, ge=0.0)
    color_jitter: tuple[Probability, Probability, Probability] = (0.0, 0.0, 0.0)
    erase: Probability = 0.0
    auto: Literal["trivial", "rand"] | None = None
    mixup: float = Field(default=0.0, ge=0.0)
    cutmix: float = Field(default=0.0, ge=0.0)

    @field_validator("flip", mode="before")
    @classmethod
    def _flip(cls, value: Any) -> Any:
        return 0.5 if value is True else value

    @model_validator(mode="after")
    def _check(self) -> Augment:
        for name, pair in (("random_resized_crop", self.random_resized_crop), ("aspect", self.aspect)):
            if pair is not None and not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name} must be a rising pair of positive numbers, got {pair}")
        if self.random_resized_crop is not None and self.random_resized_crop[1] > 1:
            raise ValueError(
                f"random_resized_crop takes at most the whole image, got {self.random_resized_crop}"
            )
        return self

    @property
    def vectorised(self) -> bool:
        """Whether a whole batch can be varied at once; only `auto` works image by image."""
        return self.auto is None

    @property
    def changes_pixels(self) -> bool:
        """Whether single images are varied at all (mixup and cutmix are not of that kind)."""
        return self.model_copy(update={"mixup": 0.0, "cutmix": 0.0}) != Augment(
            padding_mode=self.padding_mode, aspect=self.aspect
        )
