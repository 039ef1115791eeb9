"""The residual networks of keras.applications, from the names of their layers.

Weights published for them hold arrays and names alone; the names say which network it is. Architectures as
in He et al. 2015 (arXiv:1512.03385) and 2016 (arXiv:1603.05027), in the variant Keras documents: the stride
is in the first 1 x 1 convolution of a stage (first version) or in the last block of a stage (second).
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from reskit.errors import WeightsError

__all__ = ["resnet_config"]

_EPS = 1.001e-5
_BLOCK = re.compile(r"(conv[2-5])_block(\d+)_")
_ADVICE = "save the whole model with model.save(), which also says how its layers connect"


class _Named(Protocol):
    def layer_names(self) -> list[str]:
        """Return the names of the layers that have arrays."""


def resnet_config(store: _Named) -> tuple[dict[str, Any], str]:
    """Return the configuration of the network a file of weights is for, and a note that says so.

    Args:
        store: the file.

    Raises:
        WeightsError: the names are not those of a residual network of keras.applications.
    """
    names = set(store.layer_names())
    blocks: dict[str, int] = {}
    for name in names:
        match = _BLOCK.match(name)
        if match:
            blocks[match[1]] = max(blocks.get(match[1], 0), int(match[2]))
    if not names or "conv1_conv" not in names or len(blocks) != 4:
        raise WeightsError(f"it holds weights without a network: {_ADVICE}")
    if sum(blocks.values()) > len(names):
        raise WeightsError(f"blocks of the network are missing: {_ADVICE}")
    second = "post_bn" in names
    network = _Network()
    stages = [blocks[f"conv{stage}"] for stage in range(2, 6)]
    if second:
        _build_second(network, stages)
    else:
        _build_first(network, stages)
    if "predictions" in names:
        network.add("GlobalAveragePooling2D", "avg_pool")
        network.add("Dense", "predictions", activation="softmax")
    left = names - network.weighted
    if left:
        raise WeightsError(f"it has weights for {sorted(left)[0]!r}, which no ResNet of Keras has: {_ADVICE}")
    title = f"ResNet{3 * sum(stages) + 2}{'V2' if second else ''}"
    pixels = "RGB in [-1, 1]" if second else "BGR from 0 to 255 less (103.939, 116.779, 123.68)"
    note = (
        f"the names of the layers are those of {title} in keras.applications, whose published weights"
        f" take pixels {pixels}"
    )
    return network.config(), note


class _Network:
    """A functional configuration under construction; layers follow the last one unless told otherwise."""

    def __init__(self) -> None:
        self.last = "input"
        self.weighted: set[str] = set()
        shape = [None, None, None, 3]
        self._layers: list[dict[str, Any]] = [
            {"class_name": "InputLayer", "name": "input", "config": {"batch_shape": shape}}
        ]

    def add(self, kind: str, name: str, *inputs: str, **settings: Any) -> str:
        entries = [[source, 0, 0, {}] for source in inputs or (self.last,)]
        self._layers.append(
            {"class_name": kind, "name": name, "config": settings, "inbound_nodes": [entries]}
        )
        if kind in ("Conv2D", "BatchNormalization", "Dense"):
            self.weighted.add(name)
        self.last = name
        return name

    def norm(self, name: str, *inputs: str) -> str:
        return self.add("BatchNormalization", name, *inputs, epsilon=_EPS)

    def relu(self, name: str) -> str:
        return self.add("Activation", name, activation="relu")

    def conv(
        self, name: str, *inputs: str, stride: int = 1, bias: bool = True, padding: str = "valid"
    ) -> str:
        return self.add("Conv2D", name, *inputs, strides=stride, use_bias=bias, padding=padding)

    def config(self) -> dict[str, Any]:
        ends = {"input_layers": [["input", 0, 0]], "output_layers": [[self.last, 0, 0]]}
        return {"class_name": "Functional", "config": {"layers": self._layers, **ends}}


def _build_first(network: _Network, stages: list[int]) -> None:
    network.add("ZeroPadding2D", "conv1_pad", padding=3)
    network.conv("conv1_conv", stride=2)
    network.norm("conv1_bn")
    network.relu("conv1_relu")
    network.add("ZeroPadding2D", "pool1_pad", padding=1)
    x = network.add("MaxPooling2D", "pool1_pool", pool_size=3, strides=2)
    for stage, count in enumerate(stages, start=2):
        for block in range(1, count + 1):
            name = f"conv{stage}_block{block}"
            stride = 2 if block == 1 and stage > 2 else 1
            shortcut = x
            if block == 1:
                network.conv(f"{name}_0_conv", x, stride=stride)
                shortcut = network.norm(f"{name}_0_bn")
            network.conv(f"{name}_1_conv", x, stride=stride)
            network.norm(f"{name}_1_bn")
            network.relu(f"{name}_1_relu")
            network.conv(f"{name}_2_conv", padding="same")
            network.norm(f"{name}_2_bn")
            network.relu(f"{name}_2_relu")
            network.conv(f"{name}_3_conv")
            network.norm(f"{name}_3_bn")
            network.add("Add", f"{name}_add", shortcut, network.last)
            x = network.relu(f"{name}_out")


def _build_second(network: _Network, stages: list[int]) -> None:
    network.add("ZeroPadding2D", "conv1_pad", padding=3)
    network.conv("conv1_conv", stride=2)
    network.add("ZeroPadding2D", "pool1_pad", padding=1)
    x = network.add("MaxPooling2D", "pool1_pool", pool_size=3, strides=2)
    for stage, count in enumerate(stages, start=2):
        for block in range(1, count + 1):
            name = f"conv{stage}_block{block}"
            stride = 2 if block == count and stage < 5 else 1
            network.norm(f"{name}_preact_bn", x)
            active = network.relu(f"{name}_preact_relu")
            shortcut = x
            if block == 1:
                shortcut = network.conv(f"{name}_0_conv", active, stride=stride)
            elif stride > 1:
                shortcut = network.add("MaxPooling2D", f"{name}_pool", x, pool_size=1, strides=stride)
            network.conv(f"{name}_1_conv", active, bias=False)
            network.norm(f"{name}_1_bn")
            network.relu(f"{name}_1_relu")
            network.add("ZeroPadding2D", f"{name}_2_pad", padding=1)
            network.conv(f"{name}_2_conv", stride=stride, bias=False)
            network.norm(f"{name}_2_bn")
            network.relu(f"{name}_2_relu")
            network.conv(f"{name}_3_conv")
            x = network.add("Add", f"{name}_out", shortcut, network.last)
    network.norm("post_bn")
    network.relu("post_relu")
