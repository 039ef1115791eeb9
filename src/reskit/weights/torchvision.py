"""Weights that torchvision publishes, by their names: ``torchvision:ResNet50_Weights.IMAGENET1K_V2``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from reskit.errors import WeightsError, did_you_mean
from reskit.files import sha256
from reskit.weights.checkpoint import READERS, Checkpoint, Reader
from reskit.weights.torch import load_state

__all__: list[str] = []

_PREFIX = "torchvision:"
_FILES = "torchvision:ResNet50_Weights.IMAGENET1K_V2 (or .DEFAULT)"
# Networks that have the same name and layers here and there.
_SHARED_NAMES = frozenset(
    {
        *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
        *(f"densenet{depth}" for depth in (121, 169, 201)),
        "wide_resnet50_2",
        "wide_resnet101_2",
        "resnext50_32x4d",
        "mobilenet_v2",
        "fcos_resnet50_fpn",
        "fasterrcnn_resnet50_fpn",
    }
)


def _claims(sources: Sequence[str | Path]) -> bool:
    return len(sources) == 1 and str(sources[0]).startswith(_PREFIX)


def _read(sources: Sequence[str | Path]) -> Checkpoint:
    """Download published weights, or take them from torch's cache, and what torchvision says of them.

    Raises:
        WeightsError: there are no such weights, or they cannot be downloaded or read.
    """
    source = str(sources[0])
    name, weights = _find(source)
    path = _fetch(source, weights)
    digest = sha256(path)
    notes = []
    published = path.stem.rsplit("-", 1)[-1]  # torch's files have the beginning of their hash in their names
    if not digest.startswith(published):
        notes.append(f"{path} is not the file torchvision publishes: its SHA-256 does not begin {published}")
    state = load_state(path)
    labels = list(weights.meta.get("categories", [])) or None
    if name not in _SHARED_NAMES:
        notes.append(f"torchvision's network {name!r} has no twin here")
    return Checkpoint(
        format="torchvision",
        source=source,
        state=state,
        architecture={"name": name, "num_classes": len(labels or [])} if name in _SHARED_NAMES else None,
        preprocess=_preprocess(weights),
        labels=labels,
        provenance={"weights": str(weights), "url": weights.url, "sha256": {path.name: digest}},
        notes=notes,
    )


def _find(source: str) -> tuple[str, Any]:
    """Return the network's name in torchvision and the member of its enumeration of weights.

    Raises:
        WeightsError: there is none of that name.
    """
    from torchvision.models import get_model_weights, list_models

    wanted = source.removeprefix(_PREFIX)
    collection, _, member = wanted.partition(".")
    known = {get_model_weights(model).__name__: model for model in list_models()}
    if collection not in known:
        raise WeightsError(f"torchvision has no weights {wanted!r}{did_you_mean(collection, known)}")
    members = get_model_weights(known[collection]).__members__
    if member not in members:
        raise WeightsError(
            f"torchvision's {collection} has no {member or 'member given'!r}{did_you_mean(member, members)}"
        )
    return known[collection], members[member]


def _fetch(source: str, weights: Any) -> Path:
    """Return the file of the weights, downloaded and its hash checked where it was not in torch's cache."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    if path.is_file():
        return path
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch says on stdout what it downloads
            weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, no space; a hash that differs
        raise WeightsError(
            f"{source} is not in the cache and cannot be downloaded ({error}): "
            f"where there is a network, fetch {weights.url} and put it at {path}"
        ) from error
    return path


def _preprocess(weights: Any) -> Mapping[str, Any]:
    """Return how torchvision prepares images for these weights, as fields of `ImagePreprocess`."""
    transforms = weights.transforms()
    if not all(hasattr(transforms, name) for name in ("crop_size", "resize_size", "mean", "std")):
        return {}  # detection and the like
    crop, scaled = transforms.crop_size[0], transforms.resize_size[0]
    return {
        "size": (crop, crop),
        "resize": "crop",
        "crop_fraction": crop / scaled,
        "interpolation": transforms.interpolation.value,
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
    }


READERS.add("torchvision", Reader(claims=_claims, read=_read, files=_FILES))
