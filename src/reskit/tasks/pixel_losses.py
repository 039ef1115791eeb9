"""Losses for a class at every pixel, of logits `(N, K, H, W)` and classes `(N, H, W)`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reskit.data.images import IGNORED

__all__ = ["cross_entropy", "focal", "overlap"]

_SMOOTH = 1.0
"""Added to both sides of an overlap, in pixels."""


def cross_entropy(
    outputs: Tensor, target: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Return the mean of `-w_y log p_y` over labelled pixels, divided by the mean weight; 0 without any."""
    total = F.cross_entropy(
        outputs, target, weight=weights, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum"
    )
    return total / _weight(target, weights)


def focal(outputs: Tensor, target: Tensor, *, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Return the mean of `-w_y (1 - p_y)^gamma log p_y` over labelled pixels, divided by the mean weight.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, equations 4 and 5.
    """
    surprise = F.cross_entropy(outputs, target, ignore_index=IGNORED, reduction="none")
    each = (1 - torch.exp(-surprise)).pow(gamma) * surprise
    if weights is not None:
        each = each * weights[target.clamp(max=len(weights) - 1)]
    return each.sum() / _weight(target, weights)


def _weight(target: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weight of all labelled pixels; never 0."""
    labelled = target != IGNORED
    if weights is None:
        return labelled.sum().clamp(min=1)
    return (weights[target.clamp(max=len(weights) - 1)] * labelled).sum().clamp(min=1e-6)


def overlap(
    outputs: Tensor,
    target: Tensor,
    *,
    false_positive: float = 0.5,
    false_negative: float = 0.5,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Return one minus the Tversky index, mean over the classes there are in the batch.

    .. math:: T = \frac{\sum p y}{\sum p y + \alpha \sum p (1 - y) + \beta \sum (1 - p) y}

    with sums over all labelled pixels of the batch. With :math:`\alpha = \beta = 1/2` it is the Dice
    coefficient.

    Sources: Milletari et al., V-Net, 2016, section 3 (Dice); Salehi et al., Tversky Loss Function for Image
    Segmentation Using 3D Fully Convolutional Deep Networks, 2017.

    Args:
        outputs: logits.
        target: classes.
        false_positive: alpha.
        false_negative: beta.
        weights: of the classes in the mean.
    """
    classes = outputs.shape[1]
    labelled = target != IGNORED
    known = torch.where(labelled, target, 0)
    probability = outputs.softmax(1) * labelled[:, None]
    of_truth = probability.gather(1, known[:, None])[:, 0]
    both = torch.stack([(of_truth * (known == index)).sum() for index in range(classes)])
    said = probability.sum((0, 2, 3))
    true = torch.bincount(known[labelled], minlength=classes).to(said.dtype)
    union = both + false_positive * (said - both) + false_negative * (true - both)
    lost = 1 - (both + _SMOOTH / 2) / (union + _SMOOTH / 2)
    share = (true > 0).to(lost.dtype) * (1 if weights is None else weights)
    return (lost * share).sum() / share.sum().clamp(min=1e-6)
