"""What serving costs: a service against its own engine, and against KServe's SDK and LitServe.

`share`: requests a second at 32 at once, over REST with binary tensors and over gRPC, as a part of what the
engine computes without a service, on the same two cores that make the load; and as a part of what these would
leave it, once the processor time the load itself used is taken out. `overhead`: milliseconds that a request
takes beyond the run of its batch of one, median against median. `peers`: the same ONNX model in ONNX Runtime,
float32, by `reskit serve`, KServe's SDK over REST with binary tensors, and LitServe (JSON with base64: it
takes nothing else but forms), at 1, 8 and 32 at once. `memory`: what the service holds after 20,000 requests
against after 2,000. Load comes from processes of their own, with bounded counts, on loopback; contenders take
turns, those that wait are stopped; figures are medians over rounds.

    python benchmarks/serving.py --bundles runs/optimize --data PATH --peers peers/bin/python

`--bundles` is what `optimize.py` left: `resnet20` and `resnet50`, optimised here. Nothing else may run on the
machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import reskit
from common import write_result
from reskit.backends.plan import Goal
from reskit.environment import usable_cores
from reskit.serving import Settings
from reskit.serving.predictor import Predictor

HERE = Path(__file__).parent
MODELS = ("resnet20", "resnet50")
AT_ONCE = (1, 8, 32)
SECONDS = 4.0
"""How long a load lasts, about."""
GOALS = {"rest": 0.75, "grpc": 0.75, "rest_without_load": 0.90, "grpc_without_load": 0.85, "overhead_ms": 2.0}
MEMORY = {"first": 2_000, "last": 20_000, "most": 1.10}


@dataclass(frozen=True)
class Contender:
    """A service, stopped unless it is its turn."""

    process: subprocess.Popen[str]
    rest: str
    grpc: str = ""
    kind: Literal["rest", "lit"] = "rest"

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def ask(
        self, model: str, shape: Sequence[int], *, at_once: int, requests: int, grpc: bool = False
    ) -> Any:
        """Ask it from a process of its own; return what `serving_load.py` says."""
        route = f"{self.rest}/{model}" if self.kind == "lit" else f"{self.rest}/v2/models/{model}/infer"
        where = ["grpc", self.grpc, "--model", model] if grpc else [self.kind, route]
        counts = {"concurrency": at_once, "requests": requests, "warm": max(8, requests // 10)}
        words = [word for name, value in counts.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, str(HERE / "serving_load.py"), *where, *words, "--shape", *map(str, shape)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        if found["failed"]:
            raise SystemExit(f"{found['failed']} requests failed: {' '.join(command)}")
        return found


def main() -> None:
    """Serve, ask, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundles", type=Path, default=Path("runs/optimize"))
    parser.add_argument("--data", type=Path, required=True, help="cifar10-jpeg and imagenet-sample-100 in it")
    parser.add_argument("--peers", type=Path, help="a Python with kserve, litserve and onnxruntime")
    parser.add_argument("--out", type=Path, default=Path("runs/serving"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--try", dest="trial", action="store_true", help="write no result")
    options = parser.parse_args()
    bundles = {name: options.bundles / name for name in MODELS}
    figures = {
        "goals": GOALS,
        "share": share(bundles, options.rounds),
        "overhead": overhead(bundles, options.rounds),
        "memory": memory(bundles),
    }
    if options.peers:
        figures["peers"] = peers(bundles, options)
    print(json.dumps(figures, indent=1))
    if not options.trial:
        write_result("serving", figures)


def share(bundles: Mapping[str, Path], rounds: int) -> dict[str, Any]:
    """Return the service's share of its engine's throughput."""
    runners = {name: Predictor.load(path, Settings(engine="throughput")) for name, path in bundles.items()}
    found: dict[str, Any] = {}
    with ours(bundles, "throughput") as service:
        for name, predictor in runners.items():
            shape = _shape(bundles[name])
            rows = []
            for _ in range(rounds):
                alone = raw(predictor)
                row: dict[str, Any] = {"engine_images_per_s": alone}
                for protocol in ("rest", "grpc"):
                    with service.turn():
                        said = service.ask(
                            name, shape, at_once=32, requests=int(alone * SECONDS), grpc=protocol == "grpc"
                        )
                    part = said["requests_per_s"] / alone
                    left = 1 - said["generator_cpu_s"] / said["seconds"] / usable_cores()
                    row[protocol] = {**said, "share": part, "share_without_load": part / left}
                rows.append(row)
            found[name] = {
                "engine": predictor.engine,
                "batch": predictor.max_batch,
                "workers": predictor.workers,
                "images_per_s": statistics.median(row["engine_images_per_s"] for row in rows),
                **{
                    f"{protocol}{end}": statistics.median(row[protocol][f"share{end}"] for row in rows)
                    for protocol in ("rest", "grpc")
                    for end in ("", "_without_load")
                },
                "rounds": rows,
            }
            print(name, {key: value for key, value in found[name].items() if key != "rounds"})
    for predictor in runners.values():
        predictor.close()
    return found


def overhead(bundles: Mapping[str, Path], rounds: int) -> dict[str, Any]:
    """Return milliseconds beyond a run of one."""
    found: dict[str, Any] = {}
    with ours(bundles, "latency") as service:
        for name, path in bundles.items():
            predictor = Predictor.load(path, Settings(engine="latency"))
            shape = _shape(path)
            pixels = {"image": np.zeros((1, *shape), np.uint8)}
            rows = []
            for _ in range(rounds):
                times = []
                end = time.perf_counter() + SECONDS / 2
                while time.perf_counter() < end:
                    begin = time.perf_counter()
                    predictor.run(pixels)
                    times.append(1000 * (time.perf_counter() - begin))
                row = {"engine_ms": statistics.median(times)}
                for protocol in ("rest", "grpc"):
                    count = max(50, int(1000 * SECONDS / 2 / (row["engine_ms"] + 1)))
                    with service.turn():
                        said = service.ask(name, shape, at_once=1, requests=count, grpc=protocol == "grpc")
                    row[f"{protocol}_ms"] = said["p50_ms"] - row["engine_ms"]
                rows.append(row)
            found[name] = {
                "engine": predictor.engine,
                **{key: statistics.median(row[key] for row in rows) for key in rows[0]},
                "rounds": rows,
            }
            print(name, {key: value for key, value in found[name].items() if key != "rounds"})
            predictor.close()
    return found


def memory(bundles: Mapping[str, Path]) -> dict[str, Any]:
    """Return what the service holds after many requests against after some."""
    name = MODELS[0]
    held: dict[str, float] = {}
    with ours({name: bundles[name]}, "throughput") as service, service.turn():
        shape = _shape(bundles[name])
        done = 0
        for when in ("first", "last"):
            service.ask(name, shape, at_once=32, requests=int((MEMORY[when] - done) / 1.1))
            done = int(MEMORY[when])
            held[when] = _resident_mib(service.process.pid)
    return {**MEMORY, "mib": held, "ratio": held["last"] / held["first"]}


def peers(bundles: Mapping[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Return requests a second and times of one ONNX model by several services."""
    files, copies = {}, {}
    for name, path in bundles.items():
        copies[name], files[name] = options.out / name, options.out / f"{name}.onnx"
        shutil.rmtree(copies[name], ignore_errors=True)
        files[name].unlink(missing_ok=True)
        shutil.copytree(path, copies[name])
        known = (
            {"pictures": options.data / "imagenet-sample-100"}
            if name == "resnet50"
            else {"data": options.data / "cifar10-jpeg"}
        )
        reskit.optimize(copies[name], backends=["onnxruntime"], precisions=["fp32"], again=True, **known)
        reskit.export(copies[name], files[name], to="onnx")
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        contenders = {
            "reskit": stack.enter_context(ours(copies, "throughput")),
            **{
                kind: stack.enter_context(theirs(kind, options.peers, files, bundles))
                for kind in ("kserve", "litserve")
            },
        }
        for name, path in bundles.items():
            for at_once in AT_ONCE:
                rows: dict[str, list[dict[str, Any]]] = {who: [] for who in contenders}
                for _ in range(options.rounds):
                    for who, contender in contenders.items():
                        count = max(40, int(_guess(rows, name) * SECONDS / 2))
                        with contender.turn():
                            rows[who].append(
                                contender.ask(name, _shape(path), at_once=at_once, requests=count)
                            )
                found[f"{name} {at_once}"] = {
                    who: {
                        key: statistics.median(row[key] for row in said)
                        for key in ("requests_per_s", "p50_ms", "p99_ms")
                    }
                    for who, said in rows.items()
                }
                print(name, at_once, found[f"{name} {at_once}"])
    return found


def _guess(rows: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> float:
    """Return about how many requests a second may be expected."""
    known = [row["requests_per_s"] for said in rows.values() for row in said]
    return min(known, default=20.0 if name == "resnet50" else 200.0)


@contextlib.contextmanager
def ours(bundles: Mapping[str, Path], engine: Goal) -> Iterator[Contender]:
    """Serve bundles by `reskit serve`."""
    port, grpc_port = _free(), _free()
    command = [sys.executable, "-m", "reskit", "serve", *(f"{name}={path}" for name, path in bundles.items())]
    command += ["--engine", engine, "--port", str(port), "--grpc-port", str(grpc_port)]
    with _process(command, f"http://127.0.0.1:{port}") as process:
        yield Contender(process, f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}")


@contextlib.contextmanager
def theirs(
    kind: str, python: Path, files: Mapping[str, Path], bundles: Mapping[str, Path]
) -> Iterator[Contender]:
    """Serve ONNX files by a peer."""
    port = _free()
    shapes = {name: ",".join(map(str, _shape(path))) for name, path in bundles.items()}
    command = [str(python), str(HERE / "serving_peers.py"), kind, "--port", str(port)]
    command += [f"{name}={path}={shapes[name]}" for name, path in files.items()]
    with _process(command, f"http://127.0.0.1:{port}") as process:
        yield Contender(process, f"http://127.0.0.1:{port}", kind="lit" if kind == "litserve" else "rest")


@contextlib.contextmanager
def _process(command: list[str], url: str) -> Iterator[subprocess.Popen[str]]:
    """Start a service, wait until it answers, stop it until its turn, and end it."""
    log = Path(f"serving-{url.rpartition(':')[2]}.log")
    with log.open("w") as out:
        process = subprocess.Popen(command, start_new_session=True, stdout=out, stderr=out, text=True)
    try:
        where = url.removeprefix("http://").split(":")
        end = time.monotonic() + 120
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{' '.join(command)} does not answer:\n{log.read_text()[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection((where[0], int(where[1])), 1):
                break
            time.sleep(0.2)
        time.sleep(3)
        os.killpg(process.pid, signal.SIGSTOP)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.unlink()


def raw(predictor: Predictor) -> float:
    """Return images a second of the engine's runs, as many at a time as the service would have."""
    pixels = {"image": np.zeros((predictor.max_batch, *_shape(predictor.bundle.path)), np.uint8)}
    end, done = time.perf_counter() + SECONDS, [0] * predictor.workers

    def work(place: int) -> None:
        while time.perf_counter() < end:
            predictor.run(pixels)
            done[place] += 1

    begin = time.perf_counter()
    threads = [threading.Thread(target=work, args=(place,)) for place in range(predictor.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) * predictor.max_batch / (time.perf_counter() - begin)


def _shape(bundle: Path) -> tuple[int, ...]:
    """Return (C, H, W) of what a bundle's engine takes."""
    preprocess = reskit.load(bundle).task.preprocess
    return (preprocess.channels, *preprocess.size)


def _free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _resident_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
