"""What Triton's own clients ask is answered, and the answers are those of the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reskit


@pytest.fixture(scope="module")
def stored(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, images)
    return path


def same(found: Any, expected: np.ndarray) -> None:
    """Batches are cut and joined: sums may be taken in another order."""
    np.testing.assert_allclose(np.array(found, np.float32), expected, rtol=1e-4, atol=1e-4)


CONFIG = {
    "name": "digits",
    "max_batch_size": 16,
    "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": [1, 8, 8]}],
    "output": [{"name": "output", "data_type": "TYPE_FP32", "dims": [10]}],
}


def classes(expected: np.ndarray) -> list[list[str]]:
    order = np.argsort(-expected, axis=1)[:, :2]
    return [[f"{place}:{place}" for place in row] for row in order.tolist()]


def without_values(found: list[list[str]]) -> list[list[str]]:
    return [[text.partition(":")[2] for text in row] for row in found]


def test_http(
    running: Callable[..., Any], client: Callable[..., Any], bundle: Path, stored: Path, expected: np.ndarray
) -> None:
    server = running([("digits", bundle)])
    said = client("triton_http", f"127.0.0.1:{server.port}", stored)
    assert said["live"]
    assert said["ready"]
    assert said["model_ready"] == [True, True]
    assert said["nobody_ready"] is False
    assert said["server"]["name"] == "reskit"
    assert said["server"]["version"] == reskit.__version__
    assert "binary_tensor_data" in said["server"]["extensions"]
    assert said["metadata"] == {
        "name": "digits",
        "versions": ["1"],
        "platform": "reskit_torch-fp32",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 10]}],
    }
    assert CONFIG.items() <= said["config"].items()
    ways = ["json", "binary", "mixed", "version", "no outputs named", "loaded"]
    ways += ["gzip", "gzip json", "deflate", "deflate json"]
    for way in ways:
        same(said[way], expected)
    same(said["one"], expected[:1])
    for answer in said["async"]:
        same(answer, expected)
    assert without_values(said["classes"]) == classes(expected)
    assert said["classes json"] == said["classes"]
    (statistics,) = said["statistics"]["model_stats"]
    requests = statistics["inference_stats"]
    assert requests["success"]["count"] == 16
    assert requests["fail"]["count"] == 0
    assert statistics["inference_count"] == 15 * len(expected) + 1
    batches = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in statistics["batch_stats"]}
    assert sum(batches.values()) == statistics["execution_count"]
    assert sum(size * count for size, count in batches.items()) == statistics["inference_count"]
    assert all(requests[name]["ns"] > 0 for name in ("success", "queue", "compute_infer"))
    assert said["all statistics"] == said["statistics"]
    assert said["index"] == [{"name": "digits", "version": "1", "state": "READY", "reason": ""}]
    assert said["index unloaded"][0]["state"] == "UNAVAILABLE"
    assert said["unloaded"][0] == "503"
    assert "not loaded" in said["unloaded"][1]
    assert said["files"][0] == "400"
    assert "not taken" in said["files"][1]


def test_grpc(
    running: Callable[..., Any], client: Callable[..., Any], bundle: Path, stored: Path, expected: np.ndarray
) -> None:
    server = running([("digits", bundle)])
    said = client("triton_grpc", server.server.urls["grpc"], stored)
    assert said["live"]
    assert said["ready"]
    assert said["model_ready"] == [True, True]
    assert said["server"]["name"] == "reskit"
    assert said["metadata"]["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": ["-1", "1", "8", "8"]}
    ]
    assert said["config"]["max_batch_size"] == 16
    assert said["config"]["input"][0]["dims"] == ["1", "8", "8"]
    for way in ("infer", "gzip", "loaded"):
        same(said[way], expected)
    same(np.reshape(said["contents"], expected.shape), expected)
    assert without_values(said["classes"]) == classes(expected)
    assert "nobody" in said["stream"].pop(7)
    answered = [place for place in range(20) if place != 7]
    for place, (name, answer) in zip(answered, said["stream"], strict=True):
        assert name == str(place)
        same(answer, expected[: 1 + place % 3])
    assert said["health"] == 1
    (statistics,) = said["statistics"]["model_stats"]
    assert int(statistics["inference_stats"]["success"]["count"]) == 23
    assert said["index"]["models"] == [{"name": "digits", "version": "1", "state": "READY"}]
    assert said["index unloaded"]["models"][0]["state"] == "UNAVAILABLE"
    assert said["unloaded"][0] == "StatusCode.UNAVAILABLE"
    assert said["errors"]["unknown"][0] == "StatusCode.NOT_FOUND"
    assert said["errors"]["deadline"][0] == "StatusCode.DEADLINE_EXCEEDED"
    assert said["errors"]["files"][0] == "StatusCode.INVALID_ARGUMENT"
    assert said["errors"]["shared memory"][0] == "StatusCode.UNIMPLEMENTED"
