"""Labelled examples: where they come from, how they are read, varied and handed to a network.

Names are loaded on first use, so that settings can be read without torch or datasets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reskit.data.augment import Augment
    from reskit.data.batch_augment import augment_batch
    from reskit.data.info import DataInfo
    from reskit.data.kinds import SOURCES, Found, SourceKind
    from reskit.data.loading import EpochSampler, MemoryImages, StreamImages, choose_mode, make_loader
    from reskit.data.memory import DecodedSplit, decode_split
    from reskit.data.preprocess import Preprocess
    from reskit.data.sources import Source, open_source
    from reskit.data.split import LabelledSplit, OnCorrupt, Split
    from reskit.data.transforms import (
        IMAGENET_MEAN,
        IMAGENET_STD,
        ImagePreprocess,
        Normalize,
        measure_mean_std,
    )

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SOURCES",
    "Augment",
    "DataInfo",
    "DecodedSplit",
    "EpochSampler",
    "Found",
    "ImagePreprocess",
    "LabelledSplit",
    "MemoryImages",
    "Normalize",
    "OnCorrupt",
    "Preprocess",
    "Source",
    "SourceKind",
    "Split",
    "StreamImages",
    "augment_batch",
    "choose_mode",
    "decode_split",
    "make_loader",
    "measure_mean_std",
    "open_source",
]

_HOME = {
    "Augment": "augment",
    "augment_batch": "batch_augment",
    "DataInfo": "info",
    "SOURCES": "kinds",
    "Found": "kinds",
    "SourceKind": "kinds",
    "EpochSampler": "loading",
    "MemoryImages": "loading",
    "StreamImages": "loading",
    "choose_mode": "loading",
    "make_loader": "loading",
    "DecodedSplit": "memory",
    "decode_split": "memory",
    "Preprocess": "preprocess",
    "Source": "sources",
    "open_source": "sources",
    "LabelledSplit": "split",
    "OnCorrupt": "split",
    "Split": "split",
    "IMAGENET_MEAN": "transforms",
    "IMAGENET_STD": "transforms",
    "ImagePreprocess": "transforms",
    "Normalize": "transforms",
    "measure_mean_std": "transforms",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
