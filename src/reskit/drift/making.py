"""A profile is made of a bundle and its data: features, classes, and thresholds found by resampling."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from reskit.bundle import Bundle
from reskit.data import Source
from reskit.drift.profile import (
    WINDOWS,
    DriftProfile,
    Scores,
    features_and_classes,
    population_stability,
    window_score,
)
from reskit.errors import ConfigError, DataError
from reskit.evaluation import open_as_trained
from reskit.tasks import Feeding

__all__ = ["LEAST", "add_profile", "make_profile"]

TRAINING, HELD_OUT = 2000, 4000
"""Most examples that are looked at."""
LEAST = 100
"""Fewer examples held out say too little of what is usual."""
DIRECTIONS = 128
"""Most directions of features, those of the largest variance."""
ROUNDS = 1000


def add_profile(
    bundle: Bundle | str | Path, data: str | Path | Source | None = None, *, false_alarms: float = 0.01
) -> DriftProfile:
    """Write a profile into a bundle, so that a service can watch for drift, and return it.

    Args:
        bundle: a loaded bundle or its folder.
        data: where the examples are; the bundle's own training data when absent.
        false_alarms: share of windows of unchanged traffic that may raise an alarm.

    Raises:
        DataError: the data cannot be read, are too few or have other classes.
        ConfigError: the bundle's answers are not single classes, or `false_alarms` is no such share.
        OutputError: the file system refuses.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    source = data if isinstance(data, Source) else open_as_trained(bundle, data)
    bundle.task.check(source)
    train = "train" if "train" in source.splits else source.held_out
    look = _Looking(bundle)
    features, _ = look.at(source, train, TRAINING)
    held, classes = look.at(source, source.held_out, HELD_OUT)
    profile = make_profile(
        features, held, classes, num_classes=len(bundle.task.labels), false_alarms=false_alarms
    )
    profile.write(bundle)
    return profile


def make_profile(
    features: np.ndarray,
    held_out: np.ndarray,
    classes: np.ndarray,
    *,
    num_classes: int,
    false_alarms: float = 0.01,
    seed: int = 0,
) -> DriftProfile:
    """Return a profile.

    How features vary is told by training examples, where their mean is by held-out ones: a network has other
    features of what it learnt by heart than of anything it will be asked.

    Args:
        features: of training examples, `(N, F)`.
        held_out: of examples not trained on, `(M, F)`.
        classes: predicted for those, `(M,)`.
        num_classes: how many there are.
        false_alarms: share of clean windows over one threshold or both; each gets half of it.
        seed: of the resampling.

    Raises:
        DataError: fewer than 100 examples are held out.
        ConfigError: `false_alarms` is not between 0 and 1/2, or too small to be told by resampling.
    """
    from sklearn.covariance import ledoit_wolf

    if not 4 / ROUNDS <= false_alarms <= 0.5:
        raise ConfigError(f"false_alarms is {false_alarms}: give a share from {4 / ROUNDS} to 0.5")
    if len(held_out) < LEAST:
        raise DataError(f"a profile of drift needs {LEAST} examples held out, here are {len(held_out)}")
    # Shrunk, for there may be fewer examples than features, and features that never differ.
    covariance, _ = ledoit_wolf(features.astype(np.float64))
    variance, directions = np.linalg.eigh(covariance)
    variance, directions = variance[-DIRECTIONS:], directions[:, -DIRECTIONS:]
    whitening = directions / np.sqrt(np.maximum(variance, np.finfo(np.float32).tiny))
    centre = held_out.mean(0, dtype=np.float64)
    return DriftProfile(
        centre=centre,
        whitening=whitening,
        counts=np.bincount(classes, minlength=num_classes),
        thresholds=_thresholds((held_out - centre) @ whitening, classes, num_classes, false_alarms, seed),
        false_alarms=false_alarms,
        examples=(len(features), len(held_out)),
    )


def _thresholds(
    whitened: np.ndarray, classes: np.ndarray, num_classes: int, false_alarms: float, seed: int
) -> dict[int, Scores]:
    """Return what clean windows seldom exceed.

    In each round one half of the held-out examples plays the profile and windows are drawn from the other:
    a window is as strange to the profile as traffic is. Half the examples make a profile less sure than all
    do, so what comes out is on the safe side.
    """
    rng = np.random.default_rng(seed)
    half = len(whitened) // 2
    total = whitened.sum(0)
    means = np.empty((len(WINDOWS), ROUNDS, whitened.shape[1]))
    counts = np.empty((len(WINDOWS), ROUNDS, num_classes))
    usual = np.empty((ROUNDS, num_classes))
    for turn in range(ROUNDS):
        order = rng.permutation(len(whitened))
        drawn, answers = whitened[order[:half]], classes[order]
        centre = (total - drawn.sum(0)) / (len(whitened) - half)
        usual[turn] = np.bincount(answers[half:], minlength=num_classes)
        for place, size in enumerate(WINDOWS):
            taken = slice(size) if size <= half else rng.integers(half, size=size)
            means[place, turn] = drawn[taken].mean(0) - centre
            counts[place, turn] = np.bincount(answers[:half][taken], minlength=num_classes)
    found = {}
    for place, size in enumerate(WINDOWS):
        scores = window_score(means[place], size), population_stability(counts[place], usual)
        found[size] = Scores(*(float(np.quantile(score, 1 - false_alarms / 2)) for score in scores))
    return found


class _Looking:
    """Features and classes of examples, by a bundle's network in float32.

    Raises:
        ConfigError: its answers are not single classes.
    """

    def __init__(self, bundle: Bundle) -> None:
        if not bundle.task.one_class:
            raise ConfigError(
                f"drift is watched where an answer is one class; the task here is {bundle.task.name!r}"
            )
        self._task = bundle.task
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self._model = copy.deepcopy(bundle.model).to(device)
        self._normalize = copy.deepcopy(bundle.task.normalize).to(device)

    def at(self, source: Source, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features `(N, F)` and classes `(N,)` of up to `count` examples spread over a split."""
        feeding = Feeding(batch_size=128, mode="stream", workers=0)
        batches = self._task.loader(source[split].spread(count), feeding)
        found = [
            features_and_classes(self._model, self._normalize, batch[self._task.raw]) for batch in batches
        ]
        features, classes = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return features, classes
