"""What is in a TensorFlow Lite file: its operators, and the tensors they take.

The file is a flatbuffer: offsets within offsets. They are followed by the generated code of the package
`tflite`, over immutable bytes; wrong ones are caught where the file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from reskit.errors import MissingExtraError, WeightsError
from reskit.weights.building import GraphBuilder, Value

__all__ = ["Network", "Operation"]

_SMALLEST = 4  # bytes an entry of a list takes at least
_GROWTH = 8  # times the file's size that its weights may have: halves become floats, layers share tensors
_TYPES: Mapping[int, str] = {0: "<f4", 1: "<f2", 2: "<i4", 4: "<i8"}
_FLOATS = (0, 1)
_QUANTISED = (3, 7, 9, 17)  # uint8, int16, int8, int4
_FUSED = {1: "relu", 3: "relu6", 4: "tanh"}
# These compute the shape that a RESHAPE is given; the shape of its result is in the file anyway.
_SHAPES = ("SHAPE", "STRIDED_SLICE", "PACK")


class Operation:
    """One operator of the file.

    Attributes:
        kind: its name in the schema.
        name: for the graph.
        inputs: numbers of its tensors, those that are absent left out.
        output: number of the tensor it gives.
    """

    def __init__(self, network: Network, index: int, operator: Any) -> None:
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


class Network:
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
        self.graph = GraphBuilder(_GROWTH * self._size)
        self.graph.set_input(*self._input_shape())
        self._values[self._only("Inputs")] = self.graph.input

    def build(self, layers: Mapping[str, Callable[[Network, Operation], Value]]) -> Value:
        """Add every operator, and return the answer.

        Args:
            layers: how each kind of operator is added.
        """
        shapes: set[int] = set()
        for index in range(self._count(self._net, "Operators")):
            operation = Operation(self, index, self._net.Operators(index))
            if operation.kind in _SHAPES:
                shapes.add(operation.output)
            elif operation.kind == "DEQUANTIZE":
                self._constants[operation.output] = self.constant(operation, 0)
            elif operation.kind in layers:
                self._values[operation.output] = layers[operation.kind](self, operation)
            else:
                raise WeightsError(f"layer {operation.name!r}: {operation.kind} cannot be read by reskit")
        answer = self._values.get(self._only("Outputs"))
        if answer is None:
            raise WeightsError("nothing computes its answer")
        return answer

    def value(self, operation: Operation, position: int) -> Value:
        """Return what an earlier operator gave, at a position among the inputs of this."""
        value = self._values.get(self._input(operation, position))
        if value is None:
            raise WeightsError(
                f"layer {operation.name!r} ({operation.kind}) takes what no earlier layer gives"
            )
        return value

    def is_constant(self, operation: Operation, position: int) -> bool:
        """Tell whether an input is in the file."""
        return self._input(operation, position) not in self._values

    def constant(self, operation: Operation, position: int) -> Tensor:
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

    def optional(self, operation: Operation, position: int) -> Tensor | None:
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

    def fused(self, operation: Operation, options: Any, x: Value) -> Value:
        """Add the activation in the settings of a layer, if any."""
        number = options.FusedActivationFunction()
        if number == 0:
            return x
        if number not in _FUSED:
            raise WeightsError(f"layer {operation.name!r} has the activation {number}, unknown to reskit")
        return self.graph.add(f"{operation.name}_activation", _FUSED[number], [x])

    def _input(self, operation: Operation, position: int) -> int:
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
