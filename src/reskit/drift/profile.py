"""The profile a bundle holds of its data, and how far a window of examples is from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from reskit.errors import BundleError

if TYPE_CHECKING:
    from reskit.bundle import Bundle
    from reskit.models import Backbone

__all__ = [
    "WINDOWS",
    "DriftProfile",
    "Scores",
    "features_and_classes",
    "population_stability",
    "window_score",
]

WINDOWS = (50, 100, 200, 500, 1000)
"""Examples a window may have: sizes that thresholds are calibrated for."""
FILE = "drift.safetensors"


class Scores(NamedTuple):
    """Two figures of a window: by how much inputs differ, and by how much predicted classes do."""

    input: float
    classes: float


@dataclass(frozen=True, kw_only=True, eq=False)
class DriftProfile:
    """What penultimate features and predicted classes were like on the data of training.

    Attributes:
        centre: mean features of held-out examples, `(F,)`.
        whitening: features to directions of variance 1, `(F, D)`; of training examples.
        counts: predicted classes of held-out examples, `(classes,)`.
        thresholds: by size of a window, what clean windows exceed seldom.
        false_alarms: share of clean windows that exceed one threshold or both.
        examples: how many of training, and how many held out, it was made of.
    """

    centre: np.ndarray
    whitening: np.ndarray
    counts: np.ndarray
    thresholds: dict[int, Scores]
    false_alarms: float
    examples: tuple[int, int]

    def whiten(self, features: np.ndarray) -> np.ndarray:
        """Return features `(N, F)` from the centre on, in directions of variance 1, `(N, D)`."""
        whitened: np.ndarray = (features - self.centre) @ self.whitening
        return whitened

    def scores(self, features: np.ndarray, classes: np.ndarray) -> Scores:
        """Return how far a window is from the profile.

        Args:
            features: `(N, F)`.
            classes: the class each example was given, `(N,)`.
        """
        counts = np.bincount(classes, minlength=len(self.counts))
        mean = self.whiten(features).mean(0)
        return Scores(
            input=float(window_score(mean, len(features))),
            classes=float(population_stability(counts, self.counts)),
        )

    def alarms(self, scores: Scores, window: int) -> tuple[bool, bool]:
        """Return for each score of a window of so many examples whether it is over its threshold."""
        threshold = self.thresholds[window]
        return scores.input > threshold.input, scores.classes > threshold.classes

    def as_dict(self) -> dict[str, Any]:
        """Return what people want to know of it, as JSON values."""
        return {
            "examples": {"training": self.examples[0], "held_out": self.examples[1]},
            "false_alarms": self.false_alarms,
            "thresholds": [{"window": size, **scores._asdict()} for size, scores in self.thresholds.items()],
        }

    def write(self, bundle: Bundle) -> Bundle:
        """Put the profile into a bundle, in the place of an older one, and return the bundle with it.

        Raises:
            OutputError: the file system refuses.
        """
        tensors = {
            "centre": torch.from_numpy(self.centre.astype(np.float32)),
            "whitening": torch.from_numpy(np.ascontiguousarray(self.whitening, np.float32)),
            "counts": torch.from_numpy(self.counts.astype(np.int64)),
            "windows": torch.tensor(list(self.thresholds), dtype=torch.int64),
            "thresholds": torch.tensor(list(self.thresholds.values()), dtype=torch.float64),
            "false_alarms": torch.tensor(self.false_alarms, dtype=torch.float64),
            "examples": torch.tensor(self.examples, dtype=torch.int64),
        }
        return bundle.add(FILE, tensors)

    @classmethod
    def of(cls, bundle: Bundle) -> Self | None:
        """Return the profile of a bundle, or None where it has none.

        Raises:
            BundleError: it is not one, or not of this network.
        """
        tensors = bundle.added(FILE)
        if tensors is None:
            return None
        try:
            found = {name: tensor.numpy() for name, tensor in tensors.items()}
            windows, thresholds = found["windows"].tolist(), found["thresholds"].tolist()
            if tuple(windows) != WINDOWS:
                raise ValueError(f"it has the windows {windows}")
            profile = cls(
                centre=found["centre"],
                whitening=found["whitening"],
                counts=found["counts"],
                thresholds={n: Scores(*values) for n, values in zip(windows, thresholds, strict=True)},
                false_alarms=float(found["false_alarms"]),
                examples=(int(found["examples"][0]), int(found["examples"][1])),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BundleError(
                f"bundle {bundle.path}: {FILE} is not a profile ({type(error).__name__}: {error})"
            ) from None
        width, classes = bundle.model.num_features, len(bundle.task.labels)
        shapes = (profile.centre.shape, profile.whitening.shape[:1], profile.counts.shape)
        if shapes != ((width,), (width,), (classes,)) or profile.whitening.ndim != 2:
            raise BundleError(f"bundle {bundle.path}: {FILE} is of another network; make it again")
        return profile


@torch.inference_mode()
def features_and_classes(
    model: Backbone, normalize: nn.Module, pixels: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return penultimate features `(N, F)` and classes `(N,)` of raw input."""
    device = next(model.parameters()).device
    features = model.pooled(normalize(pixels.to(device)))
    return features.float().cpu().numpy(), model.head(features).argmax(1).cpu().numpy()


def window_score(mean: np.ndarray, count: int) -> np.ndarray:
    """Return Hotelling's statistic by dimension: about 1 where nothing has changed.

    The squared Mahalanobis distance of a window's mean from the profile's, times the examples in the window,
    over the number of directions (Hotelling, The Generalization of Student's Ratio, 1931).

    Args:
        mean: of whitened features, `(..., D)`.
        count: examples in the window.
    """
    score: np.ndarray = count * (mean * mean).mean(-1)
    return score


def population_stability(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the population stability index of counts `(..., K)`: 0 where shares are as expected.

    Half an example is added to each class, in the window and in as many examples as were expected, so that a
    class that was never seen gives no infinity.
    """
    size = counts.sum(-1, keepdims=True)
    usual = size * expected / expected.sum(-1, keepdims=True)
    ratio = (counts + 0.5) / (usual + 0.5)
    index: np.ndarray = ((counts - usual) * np.log(ratio)).sum(-1) / (size[..., 0] + counts.shape[-1] / 2)
    return index
