"""The embedded sample: scikit-learn's handwritten digits, always there, no network.

1,797 grey images of 8x8 pixels in ten classes, the test set of the UCI Optical Recognition of Handwritten
Digits data (Alpaydin and Kaynak 1998).
"""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from reskit.data.kinds.base import SOURCES, Found, SourceKind
from reskit.data.labels import stratified_holdout

__all__ = ["open_digits"]


def open_digits(location: str, cache_dir: Path | None, suffixes: frozenset[str]) -> Found:
    """Return the digits with a fixed 80/20 split, the same on every machine."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # the original has 17 levels
    labels = digits.target.astype(np.int64)
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "label": datasets.ClassLabel(names=[str(n) for n in range(10)]),
        }
    )
    records = [{"bytes": _png(image), "path": f"{row:04d}.png"} for row, image in enumerate(pixels)]
    table = datasets.Dataset.from_dict({"image": records, "label": labels.tolist()}, features=features)
    kept, held = stratified_holdout(labels, 0.2, seed=0, names=[str(n) for n in range(10)])
    return Found({"train": table.select(kept), "test": table.select(held)})


def _png(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


SOURCES.add(
    "digits",
    SourceKind(
        title="embedded digits",
        looks_like="the word 'digits'",
        order=10,
        matches=lambda location: location == "digits",
        open=open_digits,
    ),
)
