"""Peers for `serving.py`: KServe's SDK and LitServe with ONNX models, run by a Python of their own.

    python -m venv peers && peers/bin/pip install kserve litserve onnxruntime

Both are set up as their guides say: KServe's model answers one request at a time, LitServe gathers batches of
up to 16 within 5 ms. ONNX Runtime has its defaults, which use every core.
"""

from __future__ import annotations

import argparse
import base64
from typing import Any

import litserve
import numpy as np
import onnxruntime


def session(path: str) -> onnxruntime.InferenceSession:
    """Open a model on the CPU."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def kserve(models: dict[str, str], port: int, grpc_port: int) -> None:
    """Serve by KServe's SDK."""
    from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
    from kserve.utils.utils import generate_uuid

    class Served(Model):  # type: ignore[misc]
        def __init__(self, name: str, path: str) -> None:
            super().__init__(name)
            self.session = session(path)
            self.ready = True

        def predict(self, payload: InferRequest, *_: Any, **__: Any) -> InferResponse:
            given = payload.inputs[0]
            (found,) = self.session.run(None, {given.name: given.as_numpy()})
            output = InferOutput("output", list(found.shape), "FP32")
            output.set_data_from_numpy(found, binary_data=payload.from_grpc is False)
            return InferResponse(generate_uuid(), self.name, [output])

    ModelServer(http_port=port, grpc_port=grpc_port, workers=1).start(
        [Served(name, path) for name, path in models.items()]
    )


class Onnx(litserve.LitAPI):  # type: ignore[misc]
    """One model of LitServe; its workers are spawned, so it must be found by name."""

    def __init__(self, name: str, path: str, shape: list[int]) -> None:
        super().__init__(max_batch_size=16, batch_timeout=0.005, api_path=f"/{name}")
        self.file, self.shape = path, shape

    def setup(self, device: str) -> None:
        """Open the model, in the worker."""
        self.session = session(self.file)

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        """Return the pixels of a request."""
        return np.frombuffer(base64.b64decode(request["image"]), np.uint8).reshape(self.shape)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Join requests."""
        return np.stack(inputs)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Run the model."""
        (found,) = self.session.run(None, {"image": pixels})
        return found  # type: ignore[no-any-return]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """Divide the answers."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """Return an answer as JSON values."""
        return {"output": output.tolist()}


def lit(models: dict[str, str], port: int, shapes: dict[str, list[int]]) -> None:
    """Serve by LitServe."""
    served = [Onnx(name, path, shapes[name]) for name, path in models.items()]
    litserve.LitServer(served, accelerator="cpu", workers_per_device=1).run(
        port=port, host="127.0.0.1", generate_client_file=False
    )


def main() -> None:
    """Serve as the command line says, until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["kserve", "litserve"])
    parser.add_argument("models", nargs="+", metavar="NAME=FILE=C,H,W")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    given = [word.split("=") for word in options.models]
    models = {name: path for name, path, _ in given}
    if options.kind == "kserve":
        kserve(models, options.port, options.port + 1)
    else:
        lit(
            models, options.port, {name: [int(side) for side in shape.split(",")] for name, _, shape in given}
        )


if __name__ == "__main__":
    main()
