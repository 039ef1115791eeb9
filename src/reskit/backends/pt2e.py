"""int8 by torchao, in the form PyTorch Inductor turns into oneDNN's int8 layers on x86."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from reskit.backends.base import Metadata
from reskit.backends.graph_file import trace
from reskit.backends.onnx_graph import first_line, int8_overflows, quiet
from reskit.errors import BackendError, MissingExtraError, did_you_mean

if TYPE_CHECKING:
    from reskit.backends.servable import Servable

__all__ = ["quantized", "x86_quantizer"]

_CHUNK = 8
"""Samples looked at together in calibration."""


def quantized(
    model: Servable, metadata: Metadata, samples: np.ndarray, keep: Sequence[str]
) -> fx.GraphModule:
    """Return a traced network whose convolutions and linear layers compute in int8.

    Activations are uint8 with a zero point by tensor, weights int8 by output channel. The file holds
    weights as int8.

    Source: PyTorch tutorial "PyTorch 2 Export Quantization with X86 Backend through Inductor".

    Args:
        model: the network; not altered.
        metadata: shape of the pixels.
        samples: uint8 ``(N, C, H, W)`` to measure ranges on.
        keep: modules left in float32.

    Raises:
        BackendError: a module to keep is not there, or the network cannot be quantised.
        MissingExtraError: torchao is not installed.
    """
    x86 = x86_quantizer()
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=int8_overflows()))
    for name in _layers(model, keep):
        quantizer.set_module_name_qconfig(name, None)
    # Strict: the quantiser tells layers apart by the calls they come from.
    graph = _with_plain_names(trace(model, metadata, strict=True))
    try:
        with torch.no_grad(), quiet("torchao"):
            observed = prepare_pt2e(graph, quantizer)
            for start in range(0, len(samples), _CHUNK):
                observed(torch.from_numpy(samples[start : start + _CHUNK]))
            converted: fx.GraphModule = convert_pt2e(observed)
    except Exception as error:  # it raises whatever it meets
        raise BackendError(f"{metadata.model} cannot be quantised: {first_line(error)}") from error
    return converted


def _with_plain_names(graph: fx.GraphModule) -> fx.GraphModule:
    """Write ``getattr(L['self'].layer1, '0').conv1`` as ``L['self'].layer1.0.conv1``: as torchao expects."""
    for node in graph.graph.nodes:
        stack = node.meta.get("nn_module_stack", {})
        for key, (name, kind) in stack.items():
            while (plain := re.sub(r"getattr\(([^()]+), '(\w+)'\)", r"\1.\2", name)) != name:
                name = plain
            stack[key] = (name, kind)
    return graph


def x86_quantizer() -> Any:
    """Return torchao's module for x86; importing it also teaches Inductor to make int8 layers of its graphs.

    Raises:
        MissingExtraError: torchao is not installed.
    """
    try:
        with quiet("torch.utils._pytree", "torch.utils.cpp_extension", "torchao"):
            return importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    except ImportError:
        raise MissingExtraError("torchao", "torchao") from None


def _layers(model: nn.Module, modules: Iterable[str]) -> list[str]:
    """Return the names of the convolutions and linear layers that are modules, or lie within them.

    Raises:
        BackendError: there is none in a module.
    """
    known = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    found: list[str] = []
    for module in modules:
        own = [name for name in known if f"{name}.".startswith(f"{module}.")]
        if not own:
            raise BackendError(f"no layer of the network is named {module!r}{did_you_mean(module, known)}")
        found += own
    return found
