"""Which folders are models, which versions answer, what the plan of `optimize` changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Running

import reskit
from reskit.environment import usable_cores
from reskit.errors import BackendError, BundleError, ConfigError
from reskit.serving.folders import find_models


def found(*places: tuple[str | None, Path]) -> dict[str, list[str]]:
    return {name: list(versions) for name, versions in find_models(places).items()}


def test_folders_are_bundles_models_or_hold_them(bundle: Path, tmp_path: Path) -> None:
    for name in ("one", "many/2", "many/10", "many/01", "many/new", ".hidden", "empty/1"):
        (tmp_path / name).mkdir(parents=True)
        if not name.startswith("empty"):
            (tmp_path / name / "config.json").touch()
    assert found((None, tmp_path / "one")) == {"one": ["1"]}
    assert found(("x", tmp_path / "many")) == {"x": ["10", "2"]}
    assert found((None, tmp_path)) == {"many": ["10", "2"], "one": ["1"]}
    assert found((None, bundle)) == {"bundle": ["1"]}
    for wrong in ([(None, tmp_path / "empty")], [(None, tmp_path / "missing")], [("x", tmp_path)]):
        with pytest.raises(ConfigError, match="is not a bundle and holds none"):
            found(*wrong)
    with pytest.raises(ConfigError, match="two models are called 'one'"):
        found((None, tmp_path / "one"), (None, tmp_path))
    with pytest.raises(ConfigError, match="cannot be the name"):
        found(("a/b", tmp_path / "one"))


@pytest.fixture
def versions(bundle: Path, tmp_path: Path) -> Path:
    """A model of two versions that answer differently."""
    shutil.copytree(bundle, tmp_path / "digits" / "1")
    old = reskit.load(bundle)
    old.model.load_state_dict({name: value * 0 for name, value in old.model.state_dict().items()})
    reskit.Bundle.write(
        tmp_path / "digits" / "2",
        task=old.task,
        model=old.model,
        metrics={},
        provenance={},
        samples=old.samples["samples"],
    )
    return tmp_path


def test_the_newest_version_answers_unless_one_is_named(
    running: Callable[..., Running], versions: Path, images: np.ndarray, expected: np.ndarray
) -> None:
    server = running([versions], grpc_port=None)

    def load(policy: Any) -> None:
        config = json.dumps({"version_policy": policy})
        body = {"parameters": {"config": config}}
        reply = server.post("/v2/repository/models/digits/load", body)
        assert reply.status == 200, reply.body

    def states() -> dict[str, str]:
        index = server.post("/v2/repository/index").json
        return {row["version"]: row["state"] for row in index}

    def answer(version: str) -> Any:
        path = f"/v2/models/digits{f'/versions/{version}' if version else ''}/infer"
        data = images[0].reshape(-1).tolist()
        inputs = [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "UINT8", "data": data}]
        reply = server.post(path, {"inputs": inputs})
        if reply.status != 200:
            return reply.status
        assert reply.json["model_version"] == (
            version or server.get("/v2/models/digits").json["versions"][-1]
        )
        return reply.json["outputs"][0]["data"]

    old, new = pytest.approx(expected[0].tolist(), rel=1e-4, abs=1e-4), [0.0] * 10
    assert states() == {"1": "UNAVAILABLE", "2": "READY"}
    assert (answer(""), answer("2"), answer("1"), answer("3")) == (new, new, 503, 404)
    load({"specific": {"versions": [1]}})
    assert states() == {"1": "READY", "2": "UNAVAILABLE"}
    assert (answer(""), answer("2")) == (old, 503)
    load({"all": {}})
    assert server.get("/v2/models/digits").json["versions"] == ["1", "2"]
    assert (answer(""), answer("1")) == (new, old)
    load({"latest": {"num_versions": 1}})
    assert states() == {"1": "UNAVAILABLE", "2": "READY"}
    assert server.post("/v2/repository/index", {"ready": True}).json == [
        {"name": "digits", "version": "2", "state": "READY", "reason": ""}
    ]


def test_a_version_that_is_damaged_leaves_the_old_one_at_work(
    running: Callable[..., Running], versions: Path, images: np.ndarray
) -> None:
    server = running([versions], grpc_port=None)
    shutil.copytree(versions / "digits" / "1", versions / "digits" / "3")
    weights = versions / "digits" / "3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    reply = server.post("/v2/repository/models/digits/load")
    assert reply.status == 400
    assert "cannot be loaded" in reply.json["error"]
    assert "altered" in reply.json["error"]
    assert server.infer(images[:1]).json["model_version"] == "2"
    rows = {row["version"]: row for row in server.post("/v2/repository/index").json}
    assert rows["3"]["state"] == "UNAVAILABLE"
    assert "altered" in rows["3"]["reason"]
    shutil.rmtree(versions)  # what is loaded answers on
    assert server.infer(images[:1]).status == 200
    assert server.post("/v2/repository/index").status == 200
    assert server.post("/v2/repository/models/digits/load").status == 400
    assert server.infer(images[:1]).status == 200


def test_what_cannot_be_served_is_said_at_the_start(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match="altered"):
        Running([tmp_path / "bundle"])
    with pytest.raises(BackendError, match="was not optimised"):
        Running([bundle], engine="latency")
    with pytest.raises(ConfigError):
        Running([("a", bundle), ("a", bundle)])


def test_the_choice_of_optimize_answers(
    running: Callable[..., Running], bundle: Path, tmp_path: Path, images: np.ndarray, expected: np.ndarray
) -> None:
    pytest.importorskip("onnxruntime")
    copy = tmp_path / "digits"
    shutil.copytree(bundle, copy)
    reskit.optimize(copy, backends=["onnxruntime"], precisions=["fp32"], batches=(1, 4), threads=1)
    server = running([copy], grpc_port=None)
    (told,) = server.server.as_dict()["models"]
    assert told["engine"] == "onnxruntime-fp32"
    assert told["threads"] == 1
    assert told["workers"] == usable_cores()
    assert told["max_batch"] in (1, 4)
    one = server.infer(images[:1]).json["outputs"][0]["data"]
    np.testing.assert_allclose(one, expected[0], rtol=1e-3, atol=1e-3)
    assert server.get("/v2/models/digits").json["platform"] == "reskit_onnxruntime-fp32"
    eager = running([copy], grpc_port=None, engine="eager", max_batch=3, workers=2)
    (told,) = eager.server.as_dict()["models"]
    assert (told["engine"], told["max_batch"], told["workers"]) == ("torch-fp32", 3, 2)
