"""The layers of Caffe as nodes of a :class:`~reskit.weights.graph.Graph`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reskit.errors import WeightsError
from reskit.weights.building import GraphBuilder, Value, both_sides

__all__ = ["WEIGHTED", "Translator", "read_blob"]

_DIMENSIONS_LIMIT = 32  # as in Caffe
_DATA = frozenset(["Input", "Data", "ImageData", "MemoryData", "HDF5Data", "DummyData", "WindowData"])
_LOSSES = (
    *("SoftmaxWithLoss", "EuclideanLoss", "HingeLoss", "InfogainLoss", "ContrastiveLoss"),
    *("MultinomialLogisticLoss", "SigmoidCrossEntropyLoss"),
)
_UNREAD = frozenset(["Accuracy", "ArgMax", "Silence", "HDF5Output", *_LOSSES])
_SAME = frozenset(["Split", "Dropout"])


def read_blob(blob: Any) -> Tensor:
    """Return what a blob holds as float32.

    Raises:
        WeightsError: there is more or less in it than its shape says.
    """
    raw, kind = (b"".join(blob.data), "<f4") if blob.data else (b"".join(blob.double_data), "<f8")
    legacy = [blob.num, blob.channels, blob.height, blob.width]
    shape = list(blob.shape.dim) if blob.HasField("shape") else legacy
    fits = len(shape) <= _DIMENSIONS_LIMIT and min(shape, default=1) > 0
    if not fits or math.prod(shape) * np.dtype(kind).itemsize != len(raw):
        raise WeightsError(
            f"weights of shape {shape[:_DIMENSIONS_LIMIT]} in {len(raw)} bytes: the file is damaged, fetch it"
            " again"
        )
    return torch.from_numpy(np.frombuffer(raw, kind).astype(np.float32).reshape(shape))


class Translator:
    """Layers of Caffe to nodes.

    Args:
        network: the file's message.
        blobs: weights by layer.
        builder: what to add the layers to.
        size: height and width of the image, if the network does not say.

    Attributes:
        builder: what there is so far.
        transform: what the data layer does to an image; None where there is no data layer.
        size: height and width of the image, where the file says so.
    """

    def __init__(
        self,
        network: Any,
        blobs: Mapping[str, Sequence[Any]],
        builder: GraphBuilder,
        size: tuple[int, int] | None,
    ) -> None:
        self.builder = builder
        self.transform: Any = None
        self.size = size
        self._blobs = blobs
        # A blob's name to its latest value: layers may overwrite what they take.
        self._values: dict[str, Value] = {}
        self._given = [builder.input]
        self._taken: set[str] = set()
        self._image: str | None = None
        if network.input:
            dims = network.input_shape[0].dim if network.input_shape else network.input_dim[:4]
            self._set_image(network.input[0], dims)

    def add(self, layer: Any) -> None:
        """Add one layer after all it takes."""
        if layer.type in _UNREAD:
            return
        if layer.type in _DATA:
            self._add_data(layer)
            return
        inputs = [self._value(layer, bottom) for bottom in layer.bottom]
        if not inputs or not layer.top:
            raise WeightsError(f"layer {layer.name!r} ({layer.type}) takes or gives nothing")
        if layer.type in _SAME:
            self._values.update((top, inputs[0]) for top in layer.top)
            return
        translate = _LAYERS.get(layer.type)
        if translate is None:
            raise WeightsError(
                f"layer {layer.name!r} is of type {layer.type!r}, which is not read; types that are:"
                f" {', '.join(sorted(_LAYERS))}"
            )
        value = translate(self, layer, inputs)
        self._values[layer.top[0]] = value
        if value not in inputs:
            self._given.append(value)
            self._taken.update(source.node for source in inputs)

    def answer(self) -> Value:
        """Return the value that no other layer takes; the last one, where there are several."""
        return next(value for value in reversed(self._given) if value.node not in self._taken)

    def _value(self, layer: Any, bottom: str) -> Value:
        if bottom not in self._values:
            raise WeightsError(f"layer {layer.name!r} takes {bottom!r}, which no layer before it gives")
        return self._values[bottom]

    def _set_image(self, name: str, dims: Sequence[int]) -> None:
        self._image = name
        self._values[name] = self.builder.input
        channels = None
        if len(dims) == 4:
            if min(dims) < 1:
                raise WeightsError(f"the input has the shape {list(dims)}: give a .prototxt with its sizes")
            channels, self.size = dims[1], (dims[2], dims[3])
        self.builder.set_input(channels, *(self.size or (None, None)))

    def _add_data(self, layer: Any) -> None:
        """Take the first thing the first data layer gives for the image; labels are not read."""
        if self._image is not None or not layer.top:
            return
        shapes = layer.input_param.shape
        if layer.type != "Input":
            self.transform = layer.transform_param
            crop = self.transform.crop_size
            self.size = (crop, crop) if crop else self.size
        self._set_image(layer.top[0], shapes[0].dim if shapes else ())

    def _tensors(self, layer: Any, counts: Sequence[int]) -> list[Tensor]:
        """Return a layer's weights; one of `counts` is how many."""
        blobs = self._blobs.get(layer.name, ())
        if len(blobs) not in counts:
            raise WeightsError(
                f"layer {layer.name!r} ({layer.type}) needs {' or '.join(map(str, counts))} arrays of weights"
                f" and has {len(blobs)} in the .caffemodel"
            )
        try:
            return [read_blob(blob) for blob in blobs]
        except WeightsError as error:
            raise WeightsError(f"layer {layer.name!r} has {error}") from error

    def _convolution(self, layer: Any, inputs: Sequence[Value]) -> Value:
        options = layer.convolution_param
        _refuse(layer, options.axis != 1, "convolves along another axis")
        kernel = _pair(layer, options.kernel_size, options.kernel_h, options.kernel_w, 0)
        weight, *bias = self._tensors(layer, [2 if options.bias_term else 1])
        shape = (options.num_output, -1, *kernel)
        return self.builder.conv(
            layer.name,
            inputs[0],
            _reshape(layer, weight, shape),
            _reshape(layer, bias[0], (options.num_output,)) if bias else None,
            stride=_pair(layer, options.stride, options.stride_h, options.stride_w, 1),
            padding=both_sides(_pair(layer, options.pad, options.pad_h, options.pad_w, 0)),
            dilation=_pair(layer, options.dilation, 0, 0, 1),
            groups=options.group,
        )

    def _batch_norm(self, layer: Any, inputs: Sequence[Value]) -> Value:
        mean, variance, factor = self._tensors(layer, [3])
        # Caffe keeps sums, and by what to divide them.
        count = float(factor.flatten()[0])
        scale = 1 / count if count else 0.0
        mean, variance = mean.flatten() * scale, variance.flatten() * scale
        weights = {
            "weight": torch.ones_like(mean),
            "bias": torch.zeros_like(mean),
            "running_mean": mean,
            "running_var": variance,
        }
        return self.builder.per_channel(
            layer.name, "batch_norm", inputs[0], weights, eps=layer.batch_norm_param.eps
        )

    def _scale(self, layer: Any, inputs: Sequence[Value]) -> Value:
        options = layer.scale_param
        _refuse(layer, len(inputs) != 1, "multiplies two maps")
        _refuse(layer, options.axis != 1 or options.num_axes != 1, "scales other axes than the channels")
        weight, *bias = self._tensors(layer, [2 if options.bias_term else 1])
        weights = {"weight": weight.flatten(), "bias": bias[0].flatten() if bias else None}
        return self.builder.per_channel(layer.name, "scale", inputs[0], weights)

    def _inner_product(self, layer: Any, inputs: Sequence[Value]) -> Value:
        options = layer.inner_product_param
        _refuse(layer, options.axis != 1, "multiplies along another axis")
        weight, *bias = self._tensors(layer, [2 if options.bias_term else 1])
        shape = (-1, options.num_output) if options.transpose else (options.num_output, -1)
        matrix = _reshape(layer, weight, shape)
        return self.builder.linear(
            layer.name,
            self.builder.flatten(f"{layer.name}_flatten", inputs[0]),
            matrix.T.contiguous() if options.transpose else matrix,
            _reshape(layer, bias[0], (options.num_output,)) if bias else None,
        )

    def _pooling(self, layer: Any, inputs: Sequence[Value]) -> Value:
        options = layer.pooling_param
        _refuse(layer, options.pool > 1, "pools stochastically")
        op = "avg_pool" if options.pool == 1 else "max_pool"
        if options.global_pooling:
            return self.builder.global_pool(layer.name, inputs[0], f"global_{op}")
        # Averages are over the window as far as it lies on the padded map, in PyTorch as in Caffe.
        return self.builder.pool(
            layer.name,
            inputs[0],
            op,
            kernel=_pair(layer, [options.kernel_size], options.kernel_h, options.kernel_w, 0),
            stride=_pair(layer, [options.stride], options.stride_h, options.stride_w, 1),
            padding=both_sides(_pair(layer, [options.pad], options.pad_h, options.pad_w, 0)),
            ceil_mode=options.round_mode == 0,
            count_include_pad=True,
        )

    def _eltwise(self, layer: Any, inputs: Sequence[Value]) -> Value:
        options = layer.eltwise_param
        _refuse(layer, options.operation > 1, "takes the maximum of maps")
        if options.operation == 0:
            return self.builder.combine(layer.name, "multiply", inputs)
        factors = list(options.coeff) or [1.0] * len(inputs)
        _refuse(layer, len(factors) != len(inputs), "has not one factor for each of its inputs")
        terms = [
            source if factor == 1 else self._affine(f"{layer.name}_{i}", source, factor, 0.0)
            for i, (source, factor) in enumerate(zip(inputs, factors, strict=True))
        ]
        return self.builder.combine(layer.name, "add", terms)

    def _affine(self, name: str, source: Value, scale: float, shift: float) -> Value:
        return self.builder.add(name, "affine", [source], {"scale": scale, "shift": shift})

    def _power(self, layer: Any, inputs: Sequence[Value]) -> Value:
        options = layer.power_param
        _refuse(layer, options.power != 1, "raises to a power")
        return self._affine(layer.name, inputs[0], options.scale, options.shift)

    def _relu(self, layer: Any, inputs: Sequence[Value]) -> Value:
        slope = layer.relu_param.negative_slope
        if slope:
            return self.builder.add(layer.name, "leaky_relu", inputs, {"slope": slope})
        return self.builder.add(layer.name, "relu", inputs)

    def _prelu(self, layer: Any, inputs: Sequence[Value]) -> Value:
        weight = self._tensors(layer, [1])[0].flatten()
        shared = layer.prelu_param.channel_shared
        _refuse(layer, shared and weight.numel() != 1, "has more than the one slope it shares")
        return self.builder.per_channel(layer.name, "prelu", inputs[0], {"weight": weight})

    def _elu(self, layer: Any, inputs: Sequence[Value]) -> Value:
        return self.builder.add(layer.name, "elu", inputs, {"alpha": layer.elu_param.alpha})

    def _concat(self, layer: Any, inputs: Sequence[Value]) -> Value:
        options = layer.concat_param
        _refuse(layer, (options.axis, options.concat_dim) != (1, 1), "joins along another axis")
        return inputs[0] if len(inputs) == 1 else self.builder.combine(layer.name, "concat", inputs)

    def _softmax(self, layer: Any, inputs: Sequence[Value]) -> Value:
        _refuse(layer, layer.softmax_param.axis != 1, "is not over the channels")
        return self.builder.add(layer.name, "softmax", inputs)

    def _flatten(self, layer: Any, inputs: Sequence[Value]) -> Value:
        options = layer.flatten_param
        _refuse(layer, (options.axis, options.end_axis) not in ((1, -1), (1, 3)), "flattens other axes")
        return self.builder.flatten(layer.name, inputs[0])

    def _simple(self, layer: Any, inputs: Sequence[Value]) -> Value:
        return self.builder.add(layer.name, layer.type.lower(), inputs)


_LAYERS: Mapping[str, Callable[[Translator, Any, Sequence[Value]], Value]] = {
    "BatchNorm": Translator._batch_norm,
    "Concat": Translator._concat,
    "Convolution": Translator._convolution,
    # A faster form in many forks, with the same options.
    "DepthwiseConvolution": Translator._convolution,
    "ELU": Translator._elu,
    "Eltwise": Translator._eltwise,
    "Flatten": Translator._flatten,
    "InnerProduct": Translator._inner_product,
    "PReLU": Translator._prelu,
    "Pooling": Translator._pooling,
    "Power": Translator._power,
    "ReLU": Translator._relu,
    "Scale": Translator._scale,
    "Sigmoid": Translator._simple,
    "Softmax": Translator._softmax,
    "TanH": Translator._simple,
}
WEIGHTED = frozenset(["BatchNorm", "Convolution", "DepthwiseConvolution", "InnerProduct", "PReLU", "Scale"])


def _refuse(layer: Any, condition: bool, what: str) -> None:
    """Raise a WeightsError about a layer's options if `condition`."""
    if condition:
        raise WeightsError(f"layer {layer.name!r} ({layer.type}) {what}: such networks are not read")


def _pair(layer: Any, values: Sequence[int], height: int, width: int, default: int) -> list[int]:
    """Return height and width of an option given for both, for each, or not at all."""
    if height or width:
        return [height, width]
    values = list(values) or [default]
    _refuse(layer, len(values) > 2, "is of more than two dimensions")
    return [values[0], values[-1]]


def _reshape(layer: Any, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Return weights in the shape a layer's options tell."""
    known = math.prod(size for size in shape if size != -1)
    fits = weight.numel() == known if -1 not in shape else known > 0 and weight.numel() % known == 0
    if not fits:
        raise WeightsError(
            f"layer {layer.name!r} ({layer.type}) has weights of shape {list(weight.shape)}, which do not fit"
            " its options: give the text this model was trained with"
        )
    return weight.reshape(tuple(shape))
