"""A network deep enough to lose blocks."""

from __future__ import annotations

import pytest

import reskit
from reskit.bundle import Bundle

FIXED = ("runtime.precision=fp32", "runtime.layout=nchw")


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Nine blocks trained for two epochs on the embedded digits; read it, never write to it."""
    overrides = ["training.epochs=2", "model.arguments={depths: [3, 3, 3], width: 8}", *FIXED]
    run = reskit.train("digits-resnet8", out=tmp_path_factory.mktemp("deep") / "run", overrides=overrides)
    return Bundle.load(run.bundle)
