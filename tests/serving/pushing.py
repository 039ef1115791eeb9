"""Versions of a model as somebody pushes them: good, other, damaged, lying, failing in use."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from served import Running

import reskit
import reskit.serving.models
from reskit.bundle import BundleConfig, _with_checksum
from reskit.files import sha256
from reskit.journal import Deployment, History, history, read_journal


class Pushed:
    """The folder of the model `digits`, version 1 in it.

    Args:
        folder: where.
        bundle: version 1.
    """

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.bundle = folder / "digits", bundle
        self.journal = folder / "journal"
        self.push("1")

    def push(self, version: str, change: Callable[[Path], None] = lambda folder: None) -> None:
        """Push a copy of version 1 that was changed, whole at once."""
        staging = self.folder.parent / f".{version}"
        shutil.copytree(self.bundle, staging)
        change(staging)
        self.folder.mkdir(exist_ok=True)
        staging.rename(self.folder / version)

    def history(self) -> History:
        return history(read_journal(self.journal))

    def last(self) -> Deployment:
        return self.history().deployments[-1]


def damaged(folder: Path) -> None:
    """Change a byte of the weights."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")


def lying(folder: Path) -> None:
    """Promise other answers to the golden samples than the network gives."""
    samples = load_file(folder / "samples.safetensors")
    samples["golden.outputs"] = samples["golden.outputs"].flip(1)
    save_file(samples, folder / "samples.safetensors")
    config = reskit.load(folder.parent / "digits" / "1").config.model_dump()
    config["files"]["samples.safetensors"] = sha256(folder / "samples.safetensors")
    text = _with_checksum(BundleConfig.model_validate(config))
    (folder / "config.json").write_text(text, encoding="utf-8")


def other(folder: Path) -> None:
    """Answer zeros: sound, but not what version 1 answers."""
    old = reskit.load(folder)
    old.model.load_state_dict({name: value * 0 for name, value in old.model.state_dict().items()})
    samples = old.samples["samples"].clone()
    reskit.Bundle.write(folder, task=old.task, model=old.model, metrics={}, provenance={}, samples=samples)


@pytest.fixture
def pushed(tmp_path: Path, bundle: Path) -> Pushed:
    """A model of one version."""
    return Pushed(tmp_path, bundle)


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Any]], None]:
    """Give a version, once its golden samples are right, a network that does something else."""
    prove = reskit.serving.models.replay

    def set_up(version: str, run: Callable[..., Any]) -> None:
        def replay(predictor: Any) -> float:
            difference = prove(predictor)
            if predictor.bundle.path.name == version:
                real = predictor.runner.run
                predictor.runner.run = lambda inputs: run(real, inputs)
            return difference

        monkeypatch.setattr(reskit.serving.models, "replay", replay)

    return set_up


def load(server: Running, rollout: str | None = None) -> Any:
    body = {} if rollout is None else {"parameters": {"rollout": rollout}}
    return server.post("/v2/repository/models/digits/load", body)


def ask(server: Running, images: np.ndarray, expected: np.ndarray | None) -> str:
    """Ask for one image; return the version that answered, as it must."""
    reply = server.infer(images[:1])
    assert reply.status == 200, reply.body
    if expected is not None:
        found = reply.json["outputs"][0]["data"]
        np.testing.assert_allclose(found, expected[0], rtol=1e-4, atol=1e-4)
    return str(reply.json["model_version"])


def states(server: Running) -> dict[str, tuple[str, str]]:
    rows: Iterable[dict[str, str]] = server.post("/v2/repository/index").json
    return {row["version"]: (row["state"], row["reason"]) for row in rows}


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
