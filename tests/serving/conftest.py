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
from served import RATE, Running, wav

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


def write_random(folder: Path, task: Any, examples: list[Any]) -> Path:
    """Write a bundle with random weights."""
    import torch

    import reskit

    decided = task.decided() if task.takes == "table" else {}
    names = {"text": "text_resnet8", "table": "tabular_resnet", "audio": "cifar_resnet8"}
    torch.manual_seed(0)
    model = reskit.create_model(
        names[task.takes], num_classes=2, in_channels=task.preprocess.channels, **decided
    )
    samples = torch.stack([task.read(example) for example in examples])
    reskit.Bundle.write(folder, task=task, model=model, metrics={}, provenance={}, samples=samples)
    return folder


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles that take texts, rows and recordings."""
    from reskit.data.audio import AudioPreprocess
    from reskit.data.tables import TablePreprocess
    from reskit.data.texts import TextPreprocess
    from reskit.tasks import TASKS

    folder = tmp_path_factory.mktemp("bundles")
    texts = ["a fine film", "a dull film", "what is it"]
    words = TextPreprocess.learned(texts, unit="word")
    columns = TablePreprocess.learned({"amount": [1, 2, 300], "country": ["fr", "de", "fr"]})
    sound = AudioPreprocess(
        size=(16, 26),
        rate=RATE,
        seconds=0.25,
        window=100,
        hop=40,
        low=20,
        high=2000,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
    )
    labels = ["no", "yes"]
    return {
        "words": write_random(folder / "words", TASKS.get("text")(preprocess=words, labels=labels), texts),
        "rows": write_random(
            folder / "rows",
            TASKS.get("tabular")(preprocess=columns, labels=labels),
            [{"amount": 1, "country": "fr"}] * 4,
        ),
        "speech": write_random(
            folder / "speech", TASKS.get("audio")(preprocess=sound, labels=labels), [wav()] * 4
        ),
    }


@pytest.fixture(scope="session")
def three(bundles: dict[str, Path]) -> Iterator[Running]:
    """A server of them all, that tests only ask."""
    running = Running(list(bundles.items()), max_body_mib=2.0)
    yield running
    running.stop()
