"""Nobody takes the service's memory or time: large, slow and swollen requests."""

from __future__ import annotations

import gzip
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from served import Running, tensor

ONE = np.zeros((1, 1, 8, 8), np.uint8)
INFER = "/v2/models/digits/infer"


def send(running: Running, *pieces: bytes, pause: float = 0.0, seconds: float = 10.0) -> bytes:
    """Send raw bytes piece by piece and return what comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=seconds) as connection:
        received = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            while data := connection.recv(1 << 16):
                received += data
        except ConnectionError:  # closed with bytes unread
            pass
    return received


def head(**headers: object) -> bytes:
    lines = [f"POST {INFER} HTTP/1.1", "Host: x", *(f"{key}: {value}" for key, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).replace("_", "-").encode()


def test_a_claimed_gigabyte_is_refused_before_it_is_sent(shared: Running) -> None:
    began = time.monotonic()
    reply = send(shared, head(Content_Length=10**9))
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 2,097,152 bytes" in reply
    assert time.monotonic() - began < 5
    assert send(shared, head(Content_Length=10**30)).startswith(b"HTTP/1.1 4")


def test_a_body_without_length_is_read_up_to_the_limit(shared: Running) -> None:
    chunk = b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n"
    reply = send(shared, head(Transfer_Encoding="chunked"), *[chunk] * 4)
    assert b"413" in reply[:20] or reply == b""  # it may be closed while we still send
    assert shared.infer(ONE).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_swells_is_refused_and_takes_no_memory(shared: Running, encoding: str) -> None:
    zeros = bytes(1 << 20)
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(zeros) for _ in range(200)) + packer.flush()
    assert len(bomb) < 1 << 20
    process = psutil.Process()
    before = process.memory_info().rss
    reply = shared.post(INFER, bomb, {"Content-Encoding": encoding})
    assert reply.status == 413
    assert process.memory_info().rss - before < 64 << 20


def test_a_slow_body_is_given_up(running: Callable[..., Running], bundle: Path) -> None:
    server = running([("digits", bundle)], body_timeout_s=0.4)
    began = time.monotonic()
    reply = send(server, head(Content_Length=1000), *[b"x"] * 3, pause=0.1)
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 3


def test_a_head_that_never_ends_is_given_up(shared: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reskit.serving.connections.HEADER_SECONDS", 0.3)
    for begun in (b"", b"POST /v2 HTTP/1.1\r\nHost"):
        began = time.monotonic()
        assert send(shared, begun, *[b"x"] * (3 if begun else 0), pause=0.05) == b""
        assert 0.2 < time.monotonic() - began < 3
    flood = b"GET /v2 HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(5000))
    assert send(shared, flood) == b""
    assert shared.infer(ONE).status == 200


def png(width: int, height: int) -> bytes:
    """Return a black picture of any size, compressed row by row: never whole in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(1 + width // 8)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_an_image_bomb_is_refused_unread(shared: Running) -> None:
    bomb = png(20_000, 20_000)
    assert len(bomb) < 60_000
    process = psutil.Process()
    before = process.memory_info().rss
    reply = shared.post("/v1/predict", bomb)
    assert reply.status == 413
    assert "pixels" in reply.json["error"]
    assert process.memory_info().rss - before < 64 << 20


def test_the_limit_of_pixels_is_that_of_the_service(running: Callable[..., Running], bundle: Path) -> None:
    server = running([("digits", bundle)], max_pixels=10_000)
    assert server.post("/v1/predict", png(96, 100)).status == 200
    reply = server.post("/v1/predict", png(104, 100))
    assert reply.status == 413
    assert "104 x 100" in reply.json["error"]


def test_bodies_at_once_are_limited_together(
    running: Callable[..., Running], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reskit.serving.bodies._AT_ONCE", 0.5)
    server = running([("digits", bundle)], max_body_mib=0.1)
    reply = server.post(INFER, bytes(90_000))
    assert reply.status == 503
    assert reply.headers["retry-after"] == "1"
    assert server.post(INFER, bytes(20_000)).status == 400


def test_grpc_messages_are_limited(shared: Running, client: Callable[..., Any]) -> None:
    said = client("grpc_limits", shared.server.urls["grpc"])
    assert said["large"] == "RESOURCE_EXHAUSTED"
    assert said["swelling"] == "RESOURCE_EXHAUSTED"
    assert said["after"] == "OK"


def test_compressed_answers_are_the_same(shared: Running) -> None:
    many = np.random.default_rng(0).integers(0, 256, (16, 1, 8, 8), dtype=np.uint8)
    plain = shared.infer(many)
    assert "content-encoding" not in plain.headers
    body = {"inputs": [tensor(many)]}
    zipped = shared.post(INFER, body, {"Accept-Encoding": "br, gzip;q=0.5"})
    assert zipped.headers["content-encoding"] == "gzip"
    assert gzip.decompress(zipped.body) == plain.body
    assert "content-encoding" not in shared.post(INFER, body, {"Accept-Encoding": "gzip;q=0"}).headers
