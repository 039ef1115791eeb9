"""What a recipe may say of segmentation, and the loss it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from reskit.tasks.dense import DenseSettings
from reskit.tasks.pixel_losses import cross_entropy, focal, overlap

__all__ = ["SegmentSettings", "added_losses", "balanced", "supervised"]

LossName = Literal["cross_entropy", "dice", "focal", "tversky"]
Positive = Annotated[float, Field(gt=0)]


def _one(value: Any) -> Any:
    """Read the name of one loss as a sum of one."""
    return {value: 1.0} if isinstance(value, str) else value


class SegmentSettings(DenseSettings):
    """What a recipe may say of segmentation."""

    patch: int = Field(256, ge=8, description="side in pixels of the squares that are learned from")
    patches: int = Field(8, ge=1, description="so many of each image an epoch")
    classes: tuple[str, ...] = Field((), description="names, where the data have none")
    losses: Annotated[dict[LossName, Positive], BeforeValidator(_one)] = Field(
        {"cross_entropy": 1.0, "dice": 1.0},
        min_length=1,
        description="the losses that are added, and their weights",
    )
    class_weights: Literal["balanced"] | tuple[Positive, ...] | None = Field(
        None, description="one a class, or balanced: the inverse of its share of the training pixels"
    )
    focal_gamma: float = Field(2.0, ge=0, description="of focal")
    false_positive: float = Field(0.3, ge=0, le=1, description="alpha of tversky")
    false_negative: float = Field(0.7, ge=0, le=1, description="beta of tversky")


def added_losses(
    logits: Tensor,
    target: Tensor,
    settings: SegmentSettings,
    *,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the weighted sum of the losses that settings name.

    Args:
        logits: `(N, K, H, W)`.
        target: classes `(N, H, W)`.
        settings: which losses.
        weights: of the classes.
        smoothing: of the labels, for the cross-entropy.
    """
    total = logits.new_zeros(())
    for name, share in settings.losses.items():
        match name:
            case "cross_entropy":
                loss = cross_entropy(logits, target, weights=weights, smoothing=smoothing)
            case "dice":
                loss = overlap(logits, target, weights=weights)
            case "focal":
                loss = focal(logits, target, gamma=settings.focal_gamma, weights=weights)
            case "tversky":
                loss = overlap(
                    logits,
                    target,
                    false_positive=settings.false_positive,
                    false_negative=settings.false_negative,
                    weights=weights,
                )
        total = total + share * loss
    return total


def supervised(levels: Sequence[Tensor]) -> Tensor:
    """Return the mean loss of several levels, each of which counts half of the one before it."""
    shares = [0.5**place for place in range(len(levels))]
    weighted = [share * loss for share, loss in zip(shares, levels, strict=True)]
    return torch.stack(weighted).sum() / sum(shares)


def balanced(pixels: Sequence[int]) -> tuple[float, ...]:
    """Return `total / (classes * pixels)` of each class, as scikit-learn does; 1 for one without pixels."""
    total, classes = sum(pixels), len(pixels)
    return tuple(total / (classes * count) if count else 1.0 for count in pixels)
