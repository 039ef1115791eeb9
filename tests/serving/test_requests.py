"""What is malformed or does not fit is refused in words, and the service goes on."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import numpy as np
import pytest
from served import Running, tensor

INFER = "/v2/models/digits/infer"
ONE = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)


def body(**changes: Any) -> dict[str, Any]:
    """Return a good request, its input changed."""
    return {
        "inputs": [{key: value for key, value in {**tensor(ONE), **changes}.items() if value is not None}]
    }


MALFORMED: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "malformed"),
    "not UTF-8": (b'{"inputs": "\xff"}', "malformed"),
    "empty": (b"", "malformed"),
    "a list": ([], "malformed"),
    "deep": (b"[" * 100_000, "malformed"),
    "deep data": (body(data=json.loads("[" * 60 + "1" + "]" * 60)), "data"),
    "no inputs": ({"inputs": []}, "inputs"),
    "inputs of text": ({"inputs": ["image"]}, "inputs.0"),
    "no name": (body(name=None), "inputs.0.name"),
    "another name": (body(name="picture"), "expected the inputs"),
    "twice": ({"inputs": [tensor(ONE), tensor(ONE)]}, "twice"),
    "no shape": (body(shape=None), "inputs.0.shape"),
    "negative shape": (body(shape=[-1, 1, 8, 8]), "inputs.0.shape"),
    "shape of text": (body(shape=["1", 1, 8, 8]), "inputs.0.shape"),
    "another rank": (body(shape=[64]), "has shape"),
    "another shape": (body(shape=[1, 1, 4, 16]), "has shape"),
    "no example": (body(shape=[0, 1, 8, 8], data=[]), "has shape"),
    "huge shape": (body(shape=[2**40, 2**40, 8, 8]), "has shape"),
    "too little data": (body(data=[0] * 63), "data has shape"),
    "no data": (body(data=None), "neither data nor"),
    "ragged data": (body(data=[[1, 2], [3]]), "data"),
    "text": (body(data=["a"] * 64), "not all UINT8"),
    "null": (body(data=[None] * 64), "not all UINT8"),
    "fractions": (body(data=[0.5] * 64), "not all UINT8"),
    "too large numbers": (body(data=[256] * 64), "beyond UINT8"),
    "negative numbers": (body(data=[-1] * 64), "beyond UINT8"),
    "enormous numbers": (body(data=[10**400] * 64), "UINT8"),
    "another datatype": (body(datatype="FP32"), "float32"),
    "unknown datatype": (body(datatype="BF16"), "not taken"),
    "texts": (body(datatype="BYTES"), "not taken"),
    "too many": (body(shape=[17, 1, 8, 8], data=[0] * 64 * 17), "the most is 16"),
    "unknown output": ({**body(), "outputs": [{"name": "logits"}]}, "no output"),
    "shared memory": (body(data=None, parameters={"shared_memory_region": "x"}), "not offered"),
    "bytes that are not there": (body(data=None, parameters={"binary_data_size": 64}), "0 bytes are left"),
    "data and bytes": (body(parameters={"binary_data_size": 0}), "both"),
    "size of text": (body(data=None, parameters={"binary_data_size": "64"}), "binary_data_size"),
    "classes of text": (
        {**body(), "outputs": [{"name": "output", "parameters": {"classification": "2"}}]},
        "clas",
    ),
    "timeout of text": ({**body(), "parameters": {"timeout": "1"}}, "timeout"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_requests_are_refused(shared: Running, case: str) -> None:
    sent, words = MALFORMED[case]
    reply = shared.post(INFER, sent)
    assert reply.status == 400
    assert re.search(words, reply.json["error"])
    assert len(reply.body) < 600
    assert shared.infer(ONE).status == 200


def binary(size: int, data: bytes, header: object = None, **changes: Any) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(body(data=None, parameters={"binary_data_size": size}, **changes)).encode()
    return text + data, {"Inference-Header-Content-Length": str(len(text) if header is None else header)}


BINARY = {
    "too few bytes": binary(63, bytes(63)),
    "too many bytes": binary(65, bytes(65)),
    "bytes left over": binary(64, bytes(70)),
    "bytes missing": binary(64, bytes(60)),
    "negative size": binary(-1, bytes(64)),
    "header too large": binary(64, bytes(64), header=10**30),
    "header of text": binary(64, bytes(64), header="-5"),
    "header within the JSON": binary(64, bytes(64), header=20),
    "huge shape": binary(64, bytes(64), shape=[2**62, 2**62, 8, 8]),
}


@pytest.mark.parametrize("case", BINARY)
def test_bytes_must_be_as_many_as_said(shared: Running, case: str) -> None:
    reply = shared.post(INFER, *BINARY[case])
    assert reply.status == 400, reply.body
    assert reply.json["error"]


def test_bytes_may_begin_anywhere(shared: Running, images: np.ndarray, expected: np.ndarray) -> None:
    for spaces in range(4):
        text = json.dumps(
            {
                "inputs": [
                    {
                        "name": "image",
                        "shape": list(images.shape),
                        "datatype": "UINT8",
                        "parameters": {"binary_data_size": images.size},
                    }
                ],
                "parameters": {"binary_data_output": True},
            }
        )
        text += " " * spaces
        headers = {"Inference-Header-Content-Length": str(len(text))}
        reply = shared.post(INFER, text.encode() + images.tobytes(), headers)
        length = int(reply.headers["inference-header-content-length"])
        found = np.frombuffer(reply.body[length:], "<f4").reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert json.loads(reply.body[:length])["outputs"][0]["parameters"] == {
            "binary_data_size": found.nbytes
        }


def test_nested_data_are_read_row_by_row(shared: Running, images: np.ndarray, expected: np.ndarray) -> None:
    reply = shared.post(INFER, {"inputs": [{**tensor(images), "data": images.tolist()}], "id": "täglich"})
    assert reply.json["id"] == "täglich"
    found = np.reshape(reply.json["outputs"][0]["data"], expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_not_there_is_not_found(shared: Running) -> None:
    for path in (
        "/v2/models/digit",
        "/v2/models/digits/versions/2",
        "/v2/models/digits/versions/..%2f..",
        "/x",
    ):
        reply = shared.get(path)
        assert reply.status == 404
        assert reply.json["error"]
    assert "did you mean 'digits'" in shared.get("/v2/models/digit").json["error"]
    assert shared.ask("DELETE", "/v2/models/digits").status == 405


def test_encodings_that_are_unknown_or_broken_are_refused(shared: Running) -> None:
    good = json.dumps(body()).encode()
    for encoding, data in {"br": good, "gzip": good, "deflate": good}.items():
        assert shared.post(INFER, data, {"Content-Encoding": encoding}).status == 400
    cut = gzip.compress(good)[:-9]
    reply = shared.post(INFER, cut, {"Content-Encoding": "gzip"})
    assert "breaks off" in reply.json["error"]


def test_a_request_is_called_as_its_client_says(shared: Running) -> None:
    reply = shared.post(INFER, body(), {"X-Request-ID": "abc-1"})
    assert reply.headers["x-request-id"] == "abc-1"
    for name in ("a b", "x" * 200, ""):
        reply = shared.post(INFER, body(), {"X-Request-ID": name})
        assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])


def test_the_description_of_the_api_says_every_route(shared: Running) -> None:
    document = shared.get("/openapi.json").json
    paths = document["paths"]
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer", "/v1/predict"):
        assert paths[path]["post"]["requestBody"]["content"]
    assert "/v2/repository/models/{name}/load" in paths
    assert "$ref" not in json.dumps(paths["/v2/models/{name}/infer"]["post"]["requestBody"])


def test_only_json_objects_load_models(shared: Running) -> None:
    for path in ("/v2/repository/index", "/v2/repository/models/digits/load"):
        for sent in (b"[", b"[]", b"1"):
            assert shared.post(path, sent).status == 400
    for parameters in ([1], {"file:1/model.onnx": "x"}, {"config": "x"}, {"config": '{"backend": "python"}'}):
        reply = shared.post("/v2/repository/models/digits/load", {"parameters": parameters})
        assert reply.status == 400
    for policy in ({}, {"specific": {"versions": [2]}}, {"latest": {"num_versions": -1}}, [1]):
        config = json.dumps({"version_policy": policy})
        reply = shared.post("/v2/repository/models/digits/load", {"parameters": {"config": config}})
        assert reply.status == 400, policy
    assert shared.post("/v2/repository/models/nobody/load").status == 404
    assert shared.post("/v2/repository/models/nobody/unload").status == 404
    assert shared.infer(ONE).status == 200
