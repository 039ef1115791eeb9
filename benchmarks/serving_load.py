"""Load for `serving.py`, in a process of its own: so many requests, so many at once, and what they took.

Prints one JSON object: seconds, requests a second, milliseconds p50 and p99, the CPU seconds this process
used meanwhile, and how many requests failed. Needs numpy, and for gRPC tritonclient.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlparse

import numpy as np

Ask = Callable[[], Awaitable[None]]


def http_request(url: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Return a whole request as it goes over the wire."""
    where = urlparse(url)
    lines = [f"POST {where.path} HTTP/1.1", f"Host: {where.netloc}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def rest_binary(url: str, name: str, pixels: np.ndarray) -> bytes:
    """Return a request of the Open Inference Protocol with its tensor as bytes."""
    tensor = {"name": name, "shape": list(pixels.shape), "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": pixels.nbytes}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return http_request(
        url,
        header + pixels.tobytes(),
        {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        },
    )


def lit_json(url: str, name: str, pixels: np.ndarray) -> bytes:
    """Return a request as LitServe takes it: JSON, its bytes as base64."""
    body = json.dumps({name: base64.b64encode(pixels.tobytes()).decode()}).encode()
    return http_request(url, body, {"Content-Type": "application/json"})


async def over_http(url: str, request: bytes, count: int) -> list[Ask]:
    """Open connections that are kept, and return one way to ask for each."""
    where = urlparse(url)

    async def connect() -> Ask:
        reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=2**22)

        async def ask() -> None:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            if not head.startswith(b"http/1.1 200"):
                raise RuntimeError(head.split(b"\r\n")[0].decode())

        return ask

    return [await connect() for _ in range(count)]


async def over_grpc(url: str, name: str, model: str, pixels: np.ndarray, count: int) -> list[Ask]:
    """Return ways to ask by gRPC, over one channel."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.aio.insecure_channel(url))
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype="UINT8", shape=pixels.shape)
    request.raw_input_contents.append(pixels.tobytes())

    async def ask() -> None:
        await stub.ModelInfer(request)

    return [ask] * count


async def load(ways: list[Ask], requests: int, warm: int) -> dict[str, Any]:
    """Ask, first `warm` times unmeasured, and return the figures."""
    times: list[float] = []
    failed = 0
    left = warm

    async def one(ask: Ask) -> None:
        nonlocal left, failed
        while left > 0:
            left -= 1
            begin = time.perf_counter()
            try:
                await ask()
            except RuntimeError as error:
                failed += 1
                print(error, file=sys.stderr)
            times.append(time.perf_counter() - begin)

    await asyncio.gather(*map(one, ways))
    times.clear()
    left, failed = requests, 0
    used, begin = _cpu(), time.perf_counter()
    await asyncio.gather(*map(one, ways))
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "requests_per_s": requests / seconds,
        "p50_ms": 1000 * float(np.quantile(times, 0.5)),
        "p99_ms": 1000 * float(np.quantile(times, 0.99)),
        "generator_cpu_s": _cpu() - used,
        "failed": failed,
    }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["rest", "grpc", "lit"])
    parser.add_argument("url", help="of the infer route; HOST:PORT of gRPC")
    parser.add_argument("--model", default="")
    parser.add_argument("--input", default="image")
    parser.add_argument("--shape", type=int, nargs=3, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--warm", type=int, default=0)
    options = parser.parse_args()
    pixels = np.random.default_rng(0).integers(0, 256, (1, *options.shape), np.uint8)
    if options.kind == "grpc":
        ways = await over_grpc(options.url, options.input, options.model, pixels, options.concurrency)
    else:
        build = rest_binary if options.kind == "rest" else lit_json
        request = build(options.url, options.input, pixels)
        ways = await over_http(options.url, request, options.concurrency)
    print(json.dumps(await load(ways, options.requests, options.warm)))


if __name__ == "__main__":
    asyncio.run(main())
