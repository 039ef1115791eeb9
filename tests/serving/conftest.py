"""Servers, what they serve, and clients in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Running

CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="session")
def bundle(digits_run: Any) -> Path:
    """A bundle of digits, 8 x 8 pixels in grey."""
    found: Path = digits_run.bundle
    return found


@pytest.fixture(scope="session")
def images(bundle: Path) -> np.ndarray:
    """Some digits, uint8 `(12, 1, 8, 8)`."""
    import reskit

    found: np.ndarray = reskit.load(bundle).samples["samples"][:12].numpy()
    return found


@pytest.fixture(scope="session")
def expected(bundle: Path, images: np.ndarray) -> np.ndarray:
    """What the bundle's network says of them, asked without a service."""
    import torch

    import reskit
    from reskit.backends.answers import answers

    found: np.ndarray = answers(reskit.load(bundle), "eager")(torch.from_numpy(images)).numpy()
    return found


@pytest.fixture
def denoiser(tmp_path: Path) -> Path:
    """An untrained network that answers images of any size in tiles of 16 x 16 pixels."""
    import torch

    import reskit
    from reskit.data import ImagePreprocess
    from reskit.tasks import TASKS

    preprocess = ImagePreprocess(size=(16, 16), channels=1, mean=(0.0,), std=(1.0,))
    torch.manual_seed(0)
    reskit.Bundle.write(
        tmp_path / "denoiser",
        task=TASKS.get("denoise")(preprocess=preprocess),
        model=reskit.create_model("dncnn", depth=3, width=8, in_channels=1),
        metrics={},
        provenance={},
        samples=torch.rand(4, 1, 16, 16) * 255,
    )
    return tmp_path / "denoiser"


@pytest.fixture(scope="session")
def shared(bundle: Path) -> Iterator[Running]:
    """A server that tests only ask; the model is called `digits`."""
    running = Running([("digits", bundle)], max_body_mib=2.0)
    yield running
    running.stop()


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    """Start servers that are stopped at the end of the test."""
    started: list[Running] = []

    def start(bundles: Any, **settings: Any) -> Running:
        started.append(Running(bundles, **settings))
        return started[-1]

    yield start
    for server in started:
        if server._thread.is_alive():
            server.stop()


@pytest.fixture
def client() -> Callable[..., Any]:
    """Run a program of `clients/` in a process of its own and return what it printed as JSON."""

    def run(name: str, *arguments: object) -> Any:
        done = subprocess.run(
            [sys.executable, str(CLIENTS / f"{name}.py"), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
