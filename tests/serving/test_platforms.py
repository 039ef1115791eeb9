"""The routes of SageMaker, Vertex AI and Azure ML answer as their contracts say."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from served import Running, png, tensor

import reskit
import reskit.serving.models
import reskit.serving.server
from reskit.backends.plan import Plan, plan_folder
from reskit.errors import ConfigError
from reskit.serving.platforms import memory
from reskit.serving.platforms.environment import Platform, from_environment

JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}


def b64(image: np.ndarray) -> str:
    return base64.b64encode(png(image)).decode()


def labels(answer: Any) -> list[str]:
    return [row["label"] for row in answer["predictions"]]


@pytest.fixture(scope="module")
def rows(bundle: Path, images: np.ndarray) -> list[str]:
    """What the bundle says of the first images."""
    return [row["label"] for row in reskit.predict(bundle, [png(image) for image in images[:3]])]


def started(bundle: Path, platform: Platform, **settings: Any) -> Iterator[Running]:
    running = Running([("digits", bundle)], grpc_port=None, platform=platform, **settings)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def sagemaker(bundle: Path) -> Iterator[Running]:
    yield from started(bundle, Platform(name="sagemaker"))


@pytest.fixture(scope="module")
def vertex(bundle: Path) -> Iterator[Running]:
    variables = {
        "AIP_HEALTH_ROUTE": "/v1/endpoints/7/deployedModels/8",
        "AIP_PREDICT_ROUTE": "/v1/endpoints/7/deployedModels/8:predict",
        "AIP_DEPLOYED_MODEL_ID": "8",
    }
    yield from started(bundle, Platform.read("vertex", variables), max_pixels=10_000)


@pytest.fixture(scope="module")
def azureml(bundle: Path) -> Iterator[Running]:
    yield from started(bundle, Platform(name="azureml"))


PREDICT = "/v1/endpoints/7/deployedModels/8:predict"


# The environment


@pytest.mark.parametrize(
    ("name", "variables", "platform", "port"),
    [
        (None, {"AIP_HTTP_PORT": "9000", "AIP_PREDICT_ROUTE": "/p"}, "vertex", 9000),
        (None, {"SAGEMAKER_BIND_TO_PORT": "8081"}, "sagemaker", 8081),
        (None, {"SAGEMAKER_MULTI_MODEL": "true"}, "sagemaker", None),
        (None, {"AZUREML_MODEL_DIR": "/var/azureml-app"}, "azureml", None),
        ("sagemaker", {"AIP_HTTP_PORT": "9000"}, "sagemaker", None),
    ],
)
def test_the_environment_tells_platform_and_port(
    name: Any, variables: dict[str, str], platform: str, port: int | None
) -> None:
    settings = from_environment(name, variables)
    assert settings["platform"].name == platform
    assert settings.get("port") == port


def test_nothing_is_set_where_no_platform_is() -> None:
    assert from_environment(None, {"HOME": "/root", "AIP_HTTP_PORT": ""}) == {}


def test_routes_and_models_come_from_the_environment() -> None:
    variables = {"AIP_HEALTH_ROUTE": "/h", "AIP_DEPLOYED_MODEL_ID": "3"}
    platform = from_environment("vertex", variables)["platform"]
    assert (platform.health_route, platform.predict_route, platform.deployed_model_id) == (
        "/h",
        "/predict",
        "3",
    )
    assert from_environment("sagemaker", {"SAGEMAKER_MULTI_MODEL": "true"})["platform"].multi_model
    assert not from_environment("sagemaker", {"SAGEMAKER_MULTI_MODEL": "false"})["platform"].multi_model


@pytest.mark.parametrize(
    ("name", "variables", "words"),
    [
        ("heroku", {}, "unknown platform 'heroku'; known: sagemaker, vertex, azureml"),
        (None, {"AIP_HTTP_PORT": "eighty"}, "AIP_HTTP_PORT is 'eighty'"),
        (None, {"AIP_HTTP_PORT": "70000"}, "AIP_HTTP_PORT is '70000'"),
        ("vertex", {"AIP_PREDICT_ROUTE": "predict"}, "AIP_PREDICT_ROUTE is 'predict'"),
        ("vertex", {"AIP_HEALTH_ROUTE": "/{x}"}, "AIP_HEALTH_ROUTE is '/{x}'"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(
    name: Any, variables: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words.replace("{", r"\{")):
        from_environment(name, variables)


def test_serve_listens_where_the_platform_says(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    class StoppedError(Exception):
        pass

    class Told:
        def __init__(self, _: Any, settings: Any) -> None:
            found.append(settings)
            raise StoppedError

    monkeypatch.setattr(reskit.serving.server, "Server", Told)
    monkeypatch.setenv("AIP_HTTP_PORT", "9123")
    with pytest.raises(StoppedError):
        reskit.serving.serve([bundle], port=8000)
    assert (found[0].port, found[0].platform.name) == (9123, "vertex")


def test_no_platform_no_routes(shared: Running) -> None:
    for path in ("/ping", "/models", "/health"):
        assert shared.get(path).status == 404
    assert shared.post("/invocations", b"").status == 404
    assert shared.post("/score", b"").status == 404


# SageMaker


def test_sagemaker_takes_images_instances_and_tensors(
    sagemaker: Running, images: np.ndarray, expected: np.ndarray, rows: list[str]
) -> None:
    assert sagemaker.get("/ping").status == 200
    for kind in ("image/png", "application/x-image"):
        reply = sagemaker.post("/invocations", png(images[0]), {"Content-Type": kind})
        assert (reply.status, labels(reply.json)) == (200, rows[:1])
    instances = {"instances": [{"b64": b64(image)} for image in images[:3]]}
    assert labels(sagemaker.post("/invocations", instances, JSON).json) == rows
    reply = sagemaker.post("/invocations", {"inputs": [tensor(images[:3])]}, JSON)
    np.testing.assert_allclose(
        np.reshape(reply.json["outputs"][0]["data"], (3, -1)), expected[:3], rtol=1e-4, atol=1e-5
    )


def test_sagemaker_takes_bytes_behind_the_json(
    sagemaker: Running, images: np.ndarray, expected: np.ndarray
) -> None:
    head = {
        "inputs": [
            {
                "name": "image",
                "shape": [3, 1, 8, 8],
                "datatype": "UINT8",
                "parameters": {"binary_data_size": 192},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    reply = sagemaker.post("/invocations", text + images[:3].tobytes(), headers)
    start = int(reply.headers["inference-header-content-length"])
    found = np.frombuffer(reply.body[start:], np.float32).reshape(3, -1)
    np.testing.assert_allclose(found, expected[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"x", {"Content-Type": "video/mp4"}, "content-type 'video/mp4' is not taken"),
        (b"x", {}, "content-type '' is not taken"),
        (b"{", JSON, "malformed"),
        (b"[1]", JSON, "must be a JSON object"),
        (b"3", JSON, "must be a JSON object"),
        (b"{}", JSON, "'instances' must be a list"),
        (b'{"instances": []}', JSON, "'instances' must be a list"),
        (b"x", PNG, "not an image"),
    ],
)
def test_what_is_not_understood_is_refused(
    sagemaker: Running, body: bytes, headers: dict[str, str], words: str
) -> None:
    reply = sagemaker.post("/invocations", body, headers)
    assert reply.status == 400
    assert words in reply.json["error"]


@pytest.fixture
def endpoint(
    running: Callable[..., Running], bundle: Path, tmp_path: Path
) -> tuple[Callable[..., Any], Path, Running]:
    """A multi-model endpoint that has loaded nothing, its folder with two models, and what loads one."""
    root = tmp_path / "models"
    for name in ("aa", "bb"):
        shutil.copytree(bundle, root / name / "model")
    shutil.copytree(bundle, tmp_path / "outside")
    platform = Platform(name="sagemaker", multi_model=True)
    server = running([root], grpc_port=None, platform=platform)

    def load(name: Any, url: Any) -> Any:
        return server.post("/models", {"model_name": name, "url": str(url)}, JSON)

    return load, root, server


def test_sagemaker_loads_and_unloads_models(endpoint: Any, images: np.ndarray, rows: list[str]) -> None:
    load, root, server = endpoint
    assert server.get("/ping").status == 200
    assert server.get("/models").json == {"models": []}
    assert server.post("/models/one/invoke", png(images[0]), PNG).status == 404
    one = {"modelName": "one", "modelUrl": str(root / "aa" / "model")}
    reply = load("one", one["modelUrl"])
    assert (reply.status, reply.json) == (200, one)
    assert load("one", one["modelUrl"]).status == 409
    assert load("two", root / "bb" / "model").status == 200
    assert [row["modelName"] for row in server.get("/models").json["models"]] == ["one", "two"]
    assert server.get("/models/one").json == one
    assert labels(server.post("/models/two/invoke", png(images[1]), PNG).json) == rows[1:2]
    assert server.ask("DELETE", "/models/one").status == 200
    assert server.ask("DELETE", "/models/one").status == 404
    assert server.get("/models/one").status == 404
    assert server.post("/models/one/invoke", png(images[0]), PNG).status == 404
    assert load("one", one["modelUrl"]).status == 200


def test_sagemaker_loads_only_what_lies_in_its_folders(endpoint: Any, tmp_path: Path) -> None:
    load, root, server = endpoint
    for url in (
        tmp_path / "outside",
        root / ".." / "outside",
        "/etc",
        "",
        root / "aa",
        f"{root}/../models/../outside",
    ):
        reply = load("one", url)
        assert reply.status == 400, url
        assert "no bundle in the folders named at the start" in reply.json["error"]
    for name in ("../one", "", "a/b"):
        assert load(name, root / "aa" / "model").status == 400, name
    for body in (b"{", b"[]", b'{"model_name": "one"}', b'{"model_name": 1, "url": 2}'):
        assert server.post("/models", body, JSON).status == 400
    assert server.get("/models").json == {"models": []}


def test_a_damaged_model_is_refused_and_may_come_again(endpoint: Any, bundle: Path) -> None:
    load, root, server = endpoint
    weights = root / "aa" / "model" / "model.safetensors"
    weights.write_bytes(b"damaged")
    reply = load("one", weights.parent)
    assert reply.status == 400
    assert "was altered" in reply.json["error"]
    assert server.get("/models/one").status == 404
    shutil.copy(bundle / "model.safetensors", weights)
    assert load("one", weights.parent).status == 200


def test_a_model_that_memory_is_too_short_for_waits_until_others_are_unloaded(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, root, server = endpoint
    one, two = root / "aa" / "model", root / "bb" / "model"
    files = sum(file.stat().st_size for file in one.iterdir())
    needed = files + 3 * (one / "model.safetensors").stat().st_size + (128 << 20)

    def left() -> int:
        return needed if not server.service.models.models else needed - 1

    monkeypatch.setattr(memory, "available_memory", left)
    assert load("one", one).status == 200
    reply = load("two", two)
    assert reply.status == 507
    assert "129 MiB of memory and 129 are left: unload other models" in reply.json["error"]
    assert load("one", one).status == 409
    assert server.get("/models/two").status == 404
    assert server.ask("DELETE", "/models/one").status == 200
    assert load("two", two).status == 200


def test_memory_that_was_measured_counts_too(
    endpoint: Any, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, root, _ = endpoint
    bundle = root / "aa" / "model"
    reskit.optimize(bundle, backends=["torch"], precisions=["fp32"], batches=(1,), threads=1)
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 40)
    measured = Plan.read(plan_folder(bundle)).engine().memory_mib * 2**20
    for engine, held, needed in (("auto", 0, measured), ("latency", 100 << 20, measured - (100 << 20))):
        assert memory._needed(bundle, engine, held) == int(needed) + (128 << 20)
    assert memory._needed(bundle, "auto", 1 << 40) == memory._needed(bundle, "eager", 0) < measured
    assert load("one", bundle).status == 200


def eat_memory(*_: Any) -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


def no_memory(*_: Any) -> None:
    raise MemoryError


@pytest.mark.parametrize("fail", [eat_memory, no_memory])
@pytest.mark.parametrize("where", ["reskit.bundle.create_model", "reskit.serving.predictor.Predictor.run"])
def test_memory_that_runs_out_while_a_model_is_loaded_is_told(
    endpoint: Any, where: str, fail: Callable[..., None]
) -> None:
    load, root, server = endpoint
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(where, lambda *_, **__: fail())
        reply = load("one", root / "aa" / "model")
    assert reply.status == 507, reply.body
    assert "cannot be loaded" in reply.json["error"]
    assert server.get("/models").json == {"models": []}
    assert load("one", root / "aa" / "model").status == 200


def test_models_are_loaded_one_at_a_time(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load, root, _ = endpoint
    under_way, most = [], []
    check, prove = memory.check_memory, reskit.serving.models.replay

    def checked(*arguments: Any, **more: Any) -> None:
        under_way.append(None)
        most.append(len(under_way))
        check(*arguments, **more)

    def proven(predictor: Any) -> float:
        time.sleep(0.1)
        found = prove(predictor)
        under_way.pop()
        return found

    monkeypatch.setattr("reskit.serving.platforms.routes.check_memory", checked)
    monkeypatch.setattr(reskit.serving.models, "replay", proven)
    found = []
    asking = [
        threading.Thread(target=lambda name=name: found.append(load(name, root / "aa" / "model").status))
        for name in ("one", "two", "two")
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert (sorted(found), most) == ([200, 200, 409], [1, 1])


# Vertex AI


def test_vertex_answers_a_prediction_an_instance(
    vertex: Running, images: np.ndarray, rows: list[str]
) -> None:
    assert vertex.get("/v1/endpoints/7/deployedModels/8").status == 200
    instances: list[Any] = [{"b64": b64(images[0])}, {"image_bytes": {"b64": b64(images[1])}}]
    reply = vertex.post(PREDICT, {"instances": instances, "parameters": {"model": "digits"}}, JSON)
    assert reply.status == 200
    assert reply.json.keys() == {"predictions", "deployedModelId"}
    assert reply.json["deployedModelId"] == "8"
    assert labels(reply.json) == rows[:2]


def test_vertex_takes_pixels(vertex: Running, images: np.ndarray, expected: np.ndarray) -> None:
    reply = vertex.post(PREDICT, {"instances": images[:5].tolist()}, JSON)
    np.testing.assert_allclose(reply.json["predictions"], expected[:5], rtol=1e-4, atol=1e-5)


def test_one_bad_instance_is_a_row_with_an_error(vertex: Running, images: np.ndarray) -> None:
    bad = base64.b64encode(b"no image").decode()
    reply = vertex.post(PREDICT, {"instances": [{"b64": b64(images[0])}, {"b64": bad}]}, JSON)
    assert reply.status == 200
    assert [row["error"] is None for row in reply.json["predictions"]] == [True, False]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"instances": [{"b64": "%%%"}]}, "instances.0: 'b64' is not base64"),
        ({"instances": [{"b64": 3}]}, "instances.0 is not understood"),
        ({"instances": [{"image_bytes": "x"}]}, "takes an image"),
        ({"instances": ["x"]}, "takes an image"),
        ({"instances": [{"b64": ""}] * 65}, "65 examples at once, 64 is the most"),
        ({"instances": [{"b64": ""}], "parameters": []}, "not an image"),
        ({"instances": [{"b64": ""}], "parameters": [1]}, "'parameters' must be a JSON object"),
        ({"instances": [{"b64": ""}], "parameters": {"path": "/etc"}}, "unknown parameter 'path'"),
        ({"instances": [{"b64": ""}], "parameters": {"pictures": "yes"}}, "'pictures' is true or false"),
        ({"instances": [[[[0]]]]}, "has shape (1, 1, 1, 1), expected"),
        ({"instances": [[1, [2]]]}, "no regular array"),
        ({"instances": [[], []]}, "has shape (2, 0), expected"),
        ({"instances": [[[[256] * 8] * 8]]}, "goes beyond UINT8"),
    ],
)
def test_instances_that_are_none_are_refused(vertex: Running, document: Any, words: str) -> None:
    reply = vertex.post(PREDICT, document, JSON)
    assert reply.status == 400
    assert words in reply.json["error"]


def test_an_unknown_model_is_not_found(vertex: Running, images: np.ndarray) -> None:
    for instance in ({"b64": b64(images[0])}, images[0].tolist()):
        reply = vertex.post(PREDICT, {"instances": [instance], "parameters": {"model": "x"}}, JSON)
        assert reply.status == 404


def test_base64_has_the_limits_of_uploads(vertex: Running) -> None:
    wide = b64(np.zeros((1, 100, 101), np.uint8))
    reply = vertex.post(PREDICT, {"instances": [{"b64": wide}]}, JSON)
    assert reply.status == 413
    assert "101 x 100 pixels" in reply.json["error"]
    with socket.create_connection(("127.0.0.1", vertex.port), timeout=10) as connection:
        connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1600000\r\n\r\n".encode())
        answered = connection.recv(1 << 16)
    assert answered.startswith(b"HTTP/1.1 413 ")
    assert b"1,572,864 bytes" in answered


def test_an_answer_too_large_for_vertex_is_said(
    vertex: Running, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reskit.serving.platforms.routes._VERTEX_ANSWER", 100)
    reply = vertex.post(PREDICT, {"instances": [{"b64": b64(images[0])}]}, JSON)
    assert reply.status == 413
    assert "send fewer instances" in reply.json["error"]


def test_vertex_may_use_the_routes_that_are_there(
    running: Callable[..., Running], bundle: Path, images: np.ndarray, rows: list[str]
) -> None:
    routes = {"AIP_HEALTH_ROUTE": "/v2/health/ready", "AIP_PREDICT_ROUTE": "/v1/predict"}
    server = running([bundle], grpc_port=None, platform=Platform.read("vertex", routes))
    assert server.get("/v2/health/ready").status == 200
    reply = server.post("/v1/predict", {"instances": [{"b64": b64(images[0])}]}, JSON)
    assert labels(reply.json) == rows[:1]


# Azure ML


def test_azureml_scores(azureml: Running, images: np.ndarray, rows: list[str]) -> None:
    assert azureml.get("/v2/health/live").status == 200
    assert azureml.get("/v2/health/ready").status == 200
    assert labels(azureml.post("/score", png(images[0]), PNG).json) == rows[:1]
    instances = {"instances": [{"b64": b64(image)} for image in images[:3]]}
    assert labels(azureml.post("/score", instances, JSON).json) == rows


def test_health_needs_no_token_and_predictions_do(
    running: Callable[..., Running], bundle: Path, images: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n")
    server = running(
        [bundle], grpc_port=None, token_file=tmp_path / "tokens", platform=Platform(name="sagemaker")
    )
    assert server.get("/ping").status == 200
    assert server.post("/invocations", png(images[0]), PNG).status == 401
    allowed = {**PNG, "Authorization": "Bearer test"}
    assert server.post("/invocations", png(images[0]), allowed).status == 200


def test_a_stop_is_seen_by_health(running: Callable[..., Running], bundle: Path, images: np.ndarray) -> None:
    server = running([bundle], grpc_port=None, platform=Platform(name="sagemaker"))
    server.service.draining = True
    assert server.get("/ping").status == 503
    assert server.post("/invocations", png(images[0]), PNG).status == 200
