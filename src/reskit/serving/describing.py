"""What a service says of itself and its models: the protocol's metadata, Triton's model config."""

from __future__ import annotations

from typing import Any

import reskit
from reskit.backends.base import TensorSpec
from reskit.serving.models import Model
from reskit.serving.protocol import datatype
from reskit.serving.settings import Settings

__all__ = ["EXTENSIONS", "model_config", "model_metadata", "server_metadata"]

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)


def server_metadata() -> dict[str, Any]:
    """Return the metadata of the service."""
    return {"name": "reskit", "version": reskit.__version__, "extensions": list(EXTENSIONS)}


def model_metadata(model: Model, versions: list[str]) -> dict[str, Any]:
    """Return the metadata of a model."""
    signature = model.predictor.signature
    return {
        "name": model.name,
        "versions": versions,
        "platform": f"reskit_{model.predictor.engine}",
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
    }


def model_config(model: Model, settings: Settings) -> dict[str, Any]:
    """Return Triton's model config of a model, as JSON has it."""
    predictor = model.predictor
    signature = predictor.signature
    parameters = {
        "architecture": predictor.architecture,
        "engine": predictor.engine,
        "task": predictor.bundle.task.name,
        "threads": str(predictor.threads),
        "bundle_sha256": predictor.bundle.config.checksum(),
    }
    return {
        "name": model.name,
        "platform": f"reskit_{predictor.engine}",
        "backend": "reskit",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": predictor.max_batch,
        "input": [_config_tensor(spec) for spec in signature.inputs],
        "output": [_config_tensor(spec) for spec in signature.outputs],
        "dynamic_batching": {
            "preferred_batch_size": [predictor.max_batch],
            "max_queue_delay_microseconds": round(settings.max_delay_ms * 1000),
            "preserve_ordering": False,
        },
        "instance_group": [{"name": model.name, "kind": "KIND_CPU", "count": predictor.workers}],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if side is None else side for side in spec.shape]
    return {"name": spec.name, "datatype": datatype(spec.dtype), "shape": shape}


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    dims = [-1 if side is None else side for side in spec.shape[1:]]
    return {"name": spec.name, "data_type": f"TYPE_{datatype(spec.dtype)}", "dims": dims}
