"""Ways to run a network: how a bundle is written for each, how each is run, and which was found fastest."""

from reskit.backends import eager, executorch, inductor, litert, onnxruntime, openvino
from reskit.backends.base import BACKENDS, Backend, Metadata, Precision, Runner, Signature, TensorSpec

__all__ = [
    "BACKENDS",
    "Backend",
    "Metadata",
    "Precision",
    "Runner",
    "Signature",
    "TensorSpec",
    "eager",
    "executorch",
    "inductor",
    "litert",
    "onnxruntime",
    "openvino",
]
