"""A profile tells windows that have changed from those that have not, as seldom wrong as it says."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import reskit
from reskit.bundle import Bundle
from reskit.drift import WINDOWS, DriftProfile, features_and_classes
from reskit.drift.making import add_profile, make_profile
from reskit.drift.profile import FILE, Scores, population_stability, window_score
from reskit.errors import BundleError, ConfigError, DataError

MIX = 2 * np.eye(6) + 0.5 * np.random.default_rng(9).normal(size=(6, 6))
"""Features that hang together."""


def features(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, 6)) @ MIX + 3


@pytest.fixture(scope="module")
def profile() -> DriftProfile:
    rng = np.random.default_rng(0)
    classes = rng.choice(4, size=2000, p=[0.4, 0.3, 0.2, 0.1])
    return make_profile(features(rng, 2000), features(rng, 2000), classes, num_classes=4, false_alarms=0.04)


@pytest.fixture
def folder(digits_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_run.bundle, tmp_path / "bundle"))


def alter(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Put other tensors into the profile of a bundle, honestly listed."""
    found = {**load_file(folder / FILE), **tensors}
    Bundle.load(folder).add(FILE, {name: tensor for name, tensor in found.items() if tensor is not None})


# The figures.


def test_stability_of_shares() -> None:
    assert population_stability(np.array([50, 50]), np.array([500, 500])) == pytest.approx(0)
    counts, usual = np.array([80.0, 20.0]), np.array([500.0, 500.0])
    share = 80.5 / 101  # half an example is added to each class
    expected = (share - 0.5) * math.log(share / 0.5) + (0.5 - share) * math.log((1 - share) / 0.5)
    assert population_stability(counts, usual) == pytest.approx(expected)
    assert population_stability(np.array([100, 0]), np.array([3, 0])) == 0
    assert np.isfinite(population_stability(np.array([100, 0, 0]), np.array([0, 50, 50])))


def test_score_is_that_of_hotelling() -> None:
    assert window_score(np.array([0.1, -0.3]), 50) == pytest.approx(50 * (0.01 + 0.09) / 2)


def test_features_are_whitened(profile: DriftProfile) -> None:
    white = profile.whiten(features(np.random.default_rng(1), 20_000))
    assert np.abs(white.mean(0)).max() < 0.1
    assert np.abs(np.cov(white.T) - np.eye(6)).max() < 0.15


@pytest.mark.parametrize("window", WINDOWS)
def test_unchanged_windows_alarm_as_seldom_as_stated(profile: DriftProfile, window: int) -> None:
    rng, turns = np.random.default_rng(2), 500
    alarms = []
    for _ in range(turns):
        classes = rng.choice(4, size=window, p=[0.4, 0.3, 0.2, 0.1])
        scores = profile.scores(features(rng, window), classes)
        alarms.append(profile.alarms(scores, window))
    share = np.mean([any(pair) for pair in alarms])
    assert share <= 0.04 + 2 * math.sqrt(0.04 * 0.96 / turns)
    if window <= 100:  # the larger, the more is left to be sure of
        assert share > 0.005


def test_changes_alarm(profile: DriftProfile) -> None:
    rng = np.random.default_rng(3)
    usual = rng.choice(4, size=200, p=[0.4, 0.3, 0.2, 0.1])
    moved = profile.scores(features(rng, 200) + 0.4 * MIX[0], usual)
    assert profile.alarms(moved, 200) == (True, False)
    others = profile.scores(features(rng, 200), rng.choice(4, size=200, p=[0.1, 0.3, 0.2, 0.4]))
    assert profile.alarms(others, 200) == (False, True)


def test_features_that_never_differ_are_borne() -> None:
    rng = np.random.default_rng(4)
    dead = np.hstack([features(rng, 400), np.zeros((400, 300))])
    profile = make_profile(dead[:200], dead[200:], np.zeros(200, int), num_classes=2)
    scores = profile.scores(dead[250:300], np.zeros(50, int))
    assert np.isfinite(scores).all()
    assert profile.alarms(scores, 50) == (False, False)
    assert profile.whitening.shape == (306, 128)


def test_what_says_too_little_is_refused() -> None:
    rng = np.random.default_rng(5)
    few = features(rng, 99)
    with pytest.raises(DataError, match="needs 100 examples held out, here are 99"):
        make_profile(few, few, np.zeros(99, int), num_classes=2)
    many = features(rng, 200)
    for share in (0.0, 0.9, math.nan):
        with pytest.raises(ConfigError, match="false_alarms"):
            make_profile(many, many, np.zeros(200, int), num_classes=2, false_alarms=share)


# In the bundle.


def test_training_leaves_a_profile(digits_run: Any) -> None:
    bundle = reskit.load(digits_run.bundle)
    profile = DriftProfile.of(bundle)
    assert profile is not None
    assert FILE in bundle.config.files
    assert profile.examples == (bundle.config.provenance["counts"]["train"], profile.counts.sum())
    assert profile.counts.sum() == bundle.config.provenance["counts"]["test"]
    assert profile.false_alarms == 0.01
    assert tuple(profile.thresholds) == WINDOWS


def test_worse_images_are_told_from_good_ones(digits_run: Any) -> None:
    bundle = reskit.load(digits_run.bundle)
    profile = DriftProfile.of(bundle)
    assert profile is not None
    pixels = bundle.samples["samples"][:200]

    def alarms(images: torch.Tensor) -> tuple[bool, bool]:
        found = features_and_classes(bundle.model, bundle.task.normalize, images)
        return profile.alarms(profile.scores(*found), len(images))

    assert alarms(pixels) == (False, False)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)) * 60
    assert alarms((pixels + noise).clamp(0, 255).to(torch.uint8))[0]
    assert alarms(255 - pixels)[0]
    assert alarms(pixels[:1].expand(200, -1, -1, -1)) == (True, True)


def test_what_is_written_is_read_and_the_bundle_is_the_same(folder: Path) -> None:
    before = Bundle.load(folder)
    first = DriftProfile.of(before)
    assert first is not None
    again = add_profile(folder, false_alarms=0.1)
    after = Bundle.load(folder)
    read = DriftProfile.of(after)
    assert read is not None
    assert read.as_dict() == again.as_dict()
    assert np.array_equal(read.whitening, again.whitening.astype(np.float32))
    assert all(again.thresholds[size].input < first.thresholds[size].input for size in WINDOWS)
    assert after.config.checksum() == before.config.checksum()  # so that a plan of `optimize` holds
    assert after.config.files[FILE] != before.config.files[FILE]
    assert after.verify() <= 1e-3


def test_a_bundle_without_one_works(folder: Path) -> None:
    bundle = Bundle.load(folder)
    bundle._rewrite({name: digest for name, digest in bundle.config.files.items() if name != FILE})
    assert DriftProfile.of(Bundle.load(folder)) is None  # though the file is there: a crash may leave it
    (folder / FILE).unlink()
    assert DriftProfile.of(Bundle.load(folder)) is None


def test_a_crash_while_it_is_written_leaves_a_good_bundle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    bundle = Bundle.load(folder)
    monkeypatch.setattr("reskit.bundle.sha256", crash)
    with pytest.raises(KeyboardInterrupt):
        bundle.add(FILE, {"centre": torch.zeros(3)})
    monkeypatch.undo()
    assert DriftProfile.of(Bundle.load(folder)) is None


def test_an_altered_file_is_found(folder: Path) -> None:
    save_file({"centre": torch.zeros(2)}, folder / FILE)
    with pytest.raises(BundleError, match=r"drift\.safetensors was altered"):
        Bundle.load(folder)
    (folder / FILE).unlink()
    with pytest.raises(BundleError, match=r"drift\.safetensors is missing"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centre": None}, "is not a profile"),
        ({"windows": torch.tensor([1, 2, 3, 4, 5])}, "is not a profile"),
        ({"thresholds": torch.zeros(5, 3)}, "is not a profile"),
        ({"thresholds": torch.zeros(2, 2)}, "is not a profile"),
        ({"examples": torch.tensor(3)}, "is not a profile"),
        ({"centre": torch.zeros(3)}, "is of another network"),
        ({"counts": torch.zeros(3, dtype=torch.int64)}, "is of another network"),
        ({"whitening": torch.zeros(64)}, "is of another network"),
    ],
)
def test_a_profile_that_is_none_is_refused(folder: Path, change: Any, message: str) -> None:
    alter(folder, **change)
    with pytest.raises(BundleError, match=message):
        DriftProfile.of(Bundle.load(folder))


def test_answers_that_are_no_classes_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(folder)
    monkeypatch.setattr(type(bundle.task), "one_class", False)
    with pytest.raises(ConfigError, match="where an answer is one class; the task here is 'classify'"):
        add_profile(bundle)


def test_from_the_command_line(cli: Callable[..., Any], folder: Path) -> None:
    ran = cli("profile", folder, "--false-alarms", "0.2", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    profile = DriftProfile.of(Bundle.load(folder))
    assert profile is not None
    assert told == {"bundle": str(folder), **profile.as_dict()}
    assert told["thresholds"][2] == {"window": 200, **Scores(*profile.thresholds[200])._asdict()}
    assert "1,000" in cli("profile", folder).out
    refused = cli("profile", folder, "--false-alarms", "7")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("error: false_alarms is 7.0")
