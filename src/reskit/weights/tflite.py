"""TensorFlow Lite models with floating-point weights.

The file is a flatbuffer: offsets within offsets. They are followed by the generated code of the package
`tflite`, over immutable bytes, and whatever a wrong one leads to becomes one error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reskit.errors import MissingExtraError, ReskitError, WeightsError
from reskit.files import sha256
from reskit.weights.assembly import NO_PADDING, Assembly, Padding, Value
from reskit.weights.checkpoint import READERS, Checkpoint, Reader

__all__ = ["read_tflite"]

_IDENTIFIER = b"TFL3"
_SMALLEST = 4  # bytes an entry of a list takes at least
_GROWTH = 8  # times the file's size that its weights may have: halves become floats, layers share tensors
_TYPES: Mapping[int, str] = {0: "<f4", 1: "<f2", 2: "<i4", 4: "<i8"}
_FLOATS = (0, 1)
_QUANTISED = (3, 7, 9, 17)  # uint8, int16, int8, int4
_FUSED = {1: "relu", 3: "relu6", 4: "tanh"}
_PLAIN = {
    "RELU": "relu",
    "RELU6": "relu6",
    "LOGISTIC": "sigmoid",
    "TANH": "tanh",
    "HARD_SWISH": "hard_swish",
    "SOFTMAX": "softmax",
}
# These compute the shape that a RESHAPE is given; the shape of its result is in the file anyway.
_SHAPES = ("SHAPE", "STRIDED_SLICE", "PACK")


def claims(sources: Sequence[str | Path]) -> bool:
    """Tell a TFLite file by its name or its identifier."""
    if len(sources) != 1:
        return False
    path = Path(sources[0])
    if path.suffix.lower() == ".tflite":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8)[4:] == _IDENTIFIER


def read_tflite(sources: Sequence[str | Path]) -> Checkpoint:
    """Read a TFLite file.

    Args:
        sources: one file.

    Raises:
        WeightsError: it is damaged, quantised, or of a network that reskit cannot read.
        MissingExtraError: the package `tflite` is not installed.
    """
    path = Path(sources[0])
    if len(sources) != 1 or not path.is_file():
        raise WeightsError(f"there is no TFLite file at {path}: give one .tflite file")
    try:
        content = path.read_bytes()
        if content[4:8] != _IDENTIFIER:
            raise WeightsError("it is no TFLite file, or not a whole one: fetch it again")
        network = _Network(content)
        graph, preprocess = network.graph.finish(network.build())
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except ReskitError:
        raise
    except Exception as error:  # a wrong offset can end in anything
        raise WeightsError(
            f"{path} is not a whole TFLite file ({type(error).__name__}): fetch it again"
        ) from error
    return Checkpoint(
        format="tflite",
        source=str(path),
        state=graph.weights,
        graph=graph,
        preprocess=preprocess,
        provenance={"sha256": sha256(path)},
        notes=network.graph.notes,
    )


class _Operation:
    """One operator of the file.

    Attributes:
        kind: its name in the schema.
        name: for the graph.
        inputs: numbers of its tensors, those that are absent left out.
        output: number of the tensor it gives.
    """

    def __init__(self, network: _Network, index: int, operator: Any) -> None:
        code = network.entry(network.model, "OperatorCodes", operator.OpcodeIndex())
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        self.kind = network.kinds.get(number, f"operator {number}")
        self.name = f"{self.kind.lower()}_{index}"
        self.inputs = [n for n in network.numbers(operator, "Inputs") if n >= 0]
        outputs = network.numbers(operator, "Outputs")
        if len(outputs) != 1 or not self.inputs:
            raise WeightsError(f"layer {self.name!r} has {len(self.inputs)} inputs, {len(outputs)} outputs")
        self.output = outputs[0]
        self._operator = operator

    def options(self, kind: type[Any]) -> Any:
        """Return its settings."""
        table = self._operator.BuiltinOptions()
        if table is None:
            raise WeightsError(f"layer {self.name!r} has no settings")
        options = kind()
        options.Init(table.Bytes, table.Pos)
        return options


class _Network:
    """A TFLite file on its way to a graph.

    Args:
        content: the file.
    """

    def __init__(self, content: bytes) -> None:
        try:
            import tflite
        except ImportError:
            raise MissingExtraError("tflite", "formats") from None
        self.schema = tflite
        self.kinds = {n: k for k, n in vars(tflite.BuiltinOperator).items() if isinstance(n, int)}
        self._size = len(content)
        self.model = tflite.Model.GetRootAs(content, 0)
        if self._count(self.model, "Subgraphs") != 1:
            raise WeightsError("it has several networks or none: reskit reads one")
        self._net = self.model.Subgraphs(0)
        self._refuse_quantised()
        self._constants: dict[int, Tensor] = {}  # computed, such as halves made floats
        self._values: dict[int, Value] = {}
        self.graph = Assembly(self._input_shape(), _GROWTH * self._size)
        self._values[self._only("Inputs")] = self.graph.input

    def build(self) -> Value:
        """Add every operator, and return the answer."""
        shapes: set[int] = set()
        for index in range(self._count(self._net, "Operators")):
            operation = _Operation(self, index, self._net.Operators(index))
            if operation.kind in _SHAPES:
                shapes.add(operation.output)
            elif operation.kind == "DEQUANTIZE":
                self._constants[operation.output] = self.constant(operation, 0)
            elif operation.kind in _PLAIN:
                x = self.value(operation, 0)
                self._values[operation.output] = self.graph.add(operation.name, _PLAIN[operation.kind], [x])
            elif operation.kind in _CONVERTERS:
                self._values[operation.output] = _CONVERTERS[operation.kind](self, operation)
            else:
                raise WeightsError(f"layer {operation.name!r}: {operation.kind} cannot be read by reskit")
        answer = self._values.get(self._only("Outputs"))
        if answer is None:
            raise WeightsError("nothing computes its answer")
        return answer

    def value(self, operation: _Operation, position: int) -> Value:
        """Return what an earlier operator gave, at a position among the inputs of this."""
        value = self._values.get(self._input(operation, position))
        if value is None:
            raise WeightsError(
                f"layer {operation.name!r} ({operation.kind}) takes what no earlier layer gives"
            )
        return value

    def is_constant(self, operation: _Operation, position: int) -> bool:
        """Tell whether an input is in the file."""
        return self._input(operation, position) not in self._values

    def constant(self, operation: _Operation, position: int) -> Tensor:
        """Return an input that is in the file."""
        number = self._input(operation, position)
        if number in self._constants:
            return self._constants[number]
        tensor = self.entry(self._net, "Tensors", number)
        buffer = self.entry(self.model, "Buffers", tensor.Buffer())
        kind = _TYPES.get(tensor.Type())
        if kind is None or not self._count(buffer, "Data"):
            raise WeightsError(f"layer {operation.name!r} ({operation.kind}) has no weights in the file")
        array = buffer.DataAsNumpy().view(kind).reshape(self.shape(number))
        return torch.from_numpy(array.astype("<f4" if tensor.Type() in _FLOATS else "<i8"))

    def optional(self, operation: _Operation, position: int) -> Tensor | None:
        """Return a constant that may be absent, as a bias."""
        return self.constant(operation, position) if position < len(operation.inputs) else None

    def shape(self, number: int) -> list[int]:
        """Return the shape of a tensor."""
        return self.numbers(self.entry(self._net, "Tensors", number), "Shape")

    def numbers(self, table: Any, name: str) -> list[int]:
        """Return a list of whole numbers of a table."""
        count = self._count(table, name)
        return [int(n) for n in getattr(table, f"{name}AsNumpy")()] if count else []

    def entry(self, table: Any, name: str, index: int) -> Any:
        """Return an entry of a list of a table."""
        if not 0 <= index < self._count(table, name):
            raise WeightsError(f"it refers to number {index} of {name.lower()}, which is not there")
        return getattr(table, name)(index)

    def fused(self, operation: _Operation, options: Any, x: Value) -> Value:
        """Add the activation in the settings of a layer, if any."""
        number = options.FusedActivationFunction()
        if number == 0:
            return x
        if number not in _FUSED:
            raise WeightsError(f"layer {operation.name!r} has the activation {number}, unknown to reskit")
        return self.graph.add(f"{operation.name}_activation", _FUSED[number], [x])

    def _input(self, operation: _Operation, position: int) -> int:
        if position >= len(operation.inputs):
            raise WeightsError(f"layer {operation.name!r} ({operation.kind}) has too few inputs")
        return operation.inputs[position]

    def _count(self, table: Any, name: str) -> int:
        """Return how long a list is; one that cannot fit in the file is refused."""
        count = int(getattr(table, f"{name}Length")())
        if count * (1 if name == "Data" else _SMALLEST) > self._size:
            raise WeightsError(
                f"its list of {name.lower()} claims to be larger than the file: fetch it again"
            )
        return count

    def _only(self, name: str) -> int:
        numbers = self.numbers(self._net, name)
        if len(numbers) != 1:
            raise WeightsError(
                f"it has {len(numbers)} {name.lower()}: reskit reads one image in, one answer out"
            )
        return numbers[0]

    def _refuse_quantised(self) -> None:
        for number in range(self._count(self._net, "Tensors")):
            if self._net.Tensors(number).Type() in _QUANTISED:
                raise WeightsError(
                    "it is quantised to integers, and training needs the numbers they were rounded from:"
                    " give the floating-point file"
                )

    def _input_shape(self) -> tuple[int, int | None, int | None]:
        """Return `(C, H, W)`; sizes the file leaves open are None."""
        number = self._only("Inputs")
        tensor = self.entry(self._net, "Tensors", number)
        shape = self.numbers(tensor, "ShapeSignature") or self.shape(number)
        if len(shape) != 4 or tensor.Type() != 0 or shape[3] < 1:
            raise WeightsError(
                f"its input has the shape {shape}, which is no image of floating-point numbers"
            )
        height, width = (n if n > 0 else None for n in shape[1:3])
        return shape[3], height, width


def _window(options: Any) -> dict[str, Any]:
    padding: Padding = NO_PADDING if options.Padding() else "same"
    return {"stride": (options.StrideH(), options.StrideW()), "padding": padding}


def _conv(network: _Network, operation: _Operation) -> Value:
    depthwise = operation.kind == "DEPTHWISE_CONV_2D"
    schema = network.schema
    options = operation.options(schema.DepthwiseConv2DOptions if depthwise else schema.Conv2DOptions)
    x = network.value(operation, 0)
    kernel = network.constant(operation, 1)
    if kernel.dim() != 4:
        raise WeightsError(f"layer {operation.name!r} has a kernel of shape {tuple(kernel.shape)}")
    # (out, h, w, in / groups), or for depthwise (1, h, w, out)
    kernel = kernel.permute(3, 0, 1, 2) if depthwise else kernel.permute(0, 3, 1, 2)
    x = network.graph.conv(
        operation.name,
        x,
        kernel,
        network.optional(operation, 2),
        dilation=(options.DilationHFactor(), options.DilationWFactor()),
        groups=x.channels // max(kernel.shape[1], 1),
        **_window(options),
    )
    return network.fused(operation, options, x)


def _fully_connected(network: _Network, operation: _Operation) -> Value:
    options = operation.options(network.schema.FullyConnectedOptions)
    if options.WeightsFormat():
        raise WeightsError(f"layer {operation.name!r} has shuffled weights")
    x = network.value(operation, 0)
    weight = network.constant(operation, 1)
    if not options.KeepNumDims():
        x = network.graph.flatten(f"{operation.name}_flatten", x, "hwc")
    if weight.dim() != 2:
        raise WeightsError(f"layer {operation.name!r} has weights of shape {tuple(weight.shape)}")
    x = network.graph.linear(operation.name, x, weight, network.optional(operation, 2))
    return network.fused(operation, options, x)


def _pool(network: _Network, operation: _Operation) -> Value:
    options = operation.options(network.schema.Pool2DOptions)
    op = "max_pool" if operation.kind == "MAX_POOL_2D" else "avg_pool"
    kernel = (options.FilterHeight(), options.FilterWidth())
    x = network.value(operation, 0)
    x = network.graph.pool(operation.name, x, op, kernel=kernel, **_window(options))
    return network.fused(operation, options, x)


def _reduce(network: _Network, operation: _Operation) -> Value:
    """Mean or maximum over height and width."""
    options = operation.options(network.schema.ReducerOptions)
    axes = network.constant(operation, 1).flatten().tolist()
    if sorted(axis % 4 for axis in axes) != [1, 2]:
        raise WeightsError(f"layer {operation.name!r} reduces the axes {axes}, not height and width")
    op = "global_avg_pool" if operation.kind == "MEAN" else "global_max_pool"
    x = network.graph.global_pool(operation.name, network.value(operation, 0), op)
    return x if options.KeepDims() else network.graph.flatten(f"{operation.name}_flatten", x, "hwc")


def _reshape(network: _Network, operation: _Operation) -> Value:
    """Flattening, or a vector as a map of one position."""
    x = network.value(operation, 0)
    shape = network.shape(operation.output)
    if len(shape) == 2:
        return network.graph.flatten(operation.name, x, "hwc")
    if len(shape) == 4 and shape[1:] == [1, 1, x.channels] and x.size in (None, (1, 1)):
        return network.graph.as_map(operation.name, x)
    raise WeightsError(f"layer {operation.name!r} reshapes to {shape}: only a flattening is read")


def _pad(network: _Network, operation: _Operation) -> Value:
    padding = network.constant(operation, 1)
    if tuple(padding.shape) != (4, 2) or bool(padding[[0, 3]].any()):
        raise WeightsError(f"layer {operation.name!r} pads other than height and width")
    value = float(network.constant(operation, 2)) if operation.kind == "PADV2" else 0.0
    sides = [int(n) for n in padding[1:3].flatten()]
    return network.graph.pad(operation.name, network.value(operation, 0), sides, value)


def _arithmetic(network: _Network, operation: _Operation) -> Value:
    """Sum or product of maps, or of a map and a constant."""
    kind = operation.kind
    options = operation.options(getattr(network.schema, f"{kind.title()}Options"))
    first, second = (network.is_constant(operation, i) for i in (0, 1))
    if not first and not second and kind in ("ADD", "MUL"):
        inputs = [network.value(operation, i) for i in (0, 1)]
        x = network.graph.combine(operation.name, "add" if kind == "ADD" else "multiply", inputs)
    elif first == second or (first and kind in ("SUB", "DIV")):
        raise WeightsError(f"layer {operation.name!r} ({kind}) is of a form that reskit cannot read")
    else:
        x = _with_constant(network, operation, position=0 if first else 1)
    return network.fused(operation, options, x)


def _with_constant(network: _Network, operation: _Operation, position: int) -> Value:
    numbers = network.constant(operation, position)
    x = network.value(operation, 1 - position)
    if numbers.numel() > 1 and numbers.numel() != numbers.shape[-1]:
        raise WeightsError(f"layer {operation.name!r} has a constant of shape {tuple(numbers.shape)}")
    numbers = numbers.flatten()
    one, zero = torch.ones_like(numbers), torch.zeros_like(numbers)
    weight, bias = {
        "ADD": (one, numbers),
        "SUB": (one, -numbers),
        "MUL": (numbers, zero),
        "DIV": (1 / numbers, zero),
    }[operation.kind]
    if numbers.numel() == 1:
        attributes = {"scale": float(weight), "shift": float(bias)}
        return network.graph.add(operation.name, "affine", [x], attributes)
    return network.graph.per_channel(operation.name, "scale", x, {"weight": weight, "bias": bias})


def _prelu(network: _Network, operation: _Operation) -> Value:
    slopes = network.constant(operation, 1)
    return network.graph.per_channel(
        operation.name, "prelu", network.value(operation, 0), {"weight": slopes.flatten()}
    )


def _leaky_relu(network: _Network, operation: _Operation) -> Value:
    slope = float(operation.options(network.schema.LeakyReluOptions).Alpha())
    return network.graph.add(operation.name, "leaky_relu", [network.value(operation, 0)], {"slope": slope})


def _elu(network: _Network, operation: _Operation) -> Value:
    return network.graph.add(operation.name, "elu", [network.value(operation, 0)], {"alpha": 1.0})


def _concatenation(network: _Network, operation: _Operation) -> Value:
    options = operation.options(network.schema.ConcatenationOptions)
    inputs = [network.value(operation, i) for i in range(len(operation.inputs))]
    if options.Axis() not in ((1, -1) if inputs[0].size is None else (3, -1)):
        raise WeightsError(f"layer {operation.name!r} concatenates along axis {options.Axis()}")
    return network.fused(operation, options, network.graph.combine(operation.name, "concat", inputs))


_CONVERTERS: Mapping[str, Callable[[_Network, _Operation], Value]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "FULLY_CONNECTED": _fully_connected,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "MEAN": _reduce,
    "REDUCE_MAX": _reduce,
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "PAD": _pad,
    "PADV2": _pad,
    "ADD": _arithmetic,
    "SUB": _arithmetic,
    "MUL": _arithmetic,
    "DIV": _arithmetic,
    "PRELU": _prelu,
    "LEAKY_RELU": _leaky_relu,
    "ELU": _elu,
    "CONCATENATION": _concatenation,
}

READERS.add("tflite", Reader(claims=claims, read=read_tflite, files="model.tflite"))
