"""The part of Caffe's file format that residual networks use, declared from its published field numbers.

Source: Jia et al., "Caffe: Convolutional Architecture for Fast Feature Embedding", 2014, and the field
numbers of its ``caffe.proto``. Fields not listed here are skipped by protobuf.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from reskit.errors import MissingExtraError, WeightsError

__all__ = ["message_class", "parse_binary", "parse_text"]

_PACKAGE = "reskit_caffe"
_TEXT_LIMIT = 1 << 24  # bytes; descriptions of the deepest networks take less than one
_DEPTH_LIMIT = 50
_PARTS_LIMIT = 200_000  # of a network and its layers; the deepest networks have some thousands
_LAYER = 100  # the number of this field

_ENUMS: Mapping[str, str] = {
    "Phase": "TRAIN TEST",
    "Pool": "MAX AVE STOCHASTIC",
    "Operation": "PROD SUM MAX",
    "Round": "CEIL FLOOR",
}

# One field a line: name, number, type (* for repeated), default. What a blob holds is declared as bytes,
# which look the same in a file as packed numbers and need not be unpacked one by one.
_MESSAGES: Mapping[str, str] = {
    "Unread": "",
    "BlobShape": "dim 1 int64*",
    "BlobProto": """
        num 1 int32
        channels 2 int32
        height 3 int32
        width 4 int32
        data 5 bytes*
        shape 7 BlobShape
        double_data 8 bytes*
    """,
    "NetStateRule": """
        phase 1 Phase
        min_level 2 int32
        max_level 3 int32
        stage 4 string*
        not_stage 5 string*
    """,
    "TransformationParameter": """
        scale 1 float 1
        crop_size 3 uint32
        mean_file 4 string
        mean_value 5 float*
    """,
    "ConcatParameter": """
        concat_dim 1 uint32 1
        axis 2 int32 1
    """,
    "ConvolutionParameter": """
        num_output 1 uint32
        bias_term 2 bool true
        pad 3 uint32*
        kernel_size 4 uint32*
        group 5 uint32 1
        stride 6 uint32*
        pad_h 9 uint32
        pad_w 10 uint32
        kernel_h 11 uint32
        kernel_w 12 uint32
        stride_h 13 uint32
        stride_w 14 uint32
        axis 16 int32 1
        dilation 18 uint32*
    """,
    "EltwiseParameter": """
        operation 1 Operation SUM
        coeff 2 float*
    """,
    "InnerProductParameter": """
        num_output 1 uint32
        bias_term 2 bool true
        axis 5 int32 1
        transpose 6 bool false
    """,
    "PoolingParameter": """
        pool 1 Pool MAX
        kernel_size 2 uint32
        stride 3 uint32 1
        pad 4 uint32
        kernel_h 5 uint32
        kernel_w 6 uint32
        stride_h 7 uint32
        stride_w 8 uint32
        pad_h 9 uint32
        pad_w 10 uint32
        global_pooling 12 bool false
        round_mode 13 Round CEIL
    """,
    "PowerParameter": """
        power 1 float 1
        scale 2 float 1
        shift 3 float 0
    """,
    "ReLUParameter": "negative_slope 1 float 0",
    "SoftmaxParameter": "axis 2 int32 1",
    "PReLUParameter": "channel_shared 2 bool false",
    "FlattenParameter": """
        axis 1 int32 1
        end_axis 2 int32 -1
    """,
    "BatchNormParameter": "eps 3 float 1e-05",
    "ELUParameter": "alpha 1 float 1",
    "ScaleParameter": """
        axis 1 int32 1
        num_axes 2 int32 1
        bias_term 4 bool false
    """,
    "InputParameter": "shape 1 BlobShape*",
    "LayerParameter": """
        name 1 string
        type 2 string
        bottom 3 string*
        top 4 string*
        blobs 7 BlobProto*
        include 8 NetStateRule*
        exclude 9 NetStateRule*
        transform_param 100 TransformationParameter
        concat_param 104 ConcatParameter
        convolution_param 106 ConvolutionParameter
        eltwise_param 110 EltwiseParameter
        inner_product_param 117 InnerProductParameter
        pooling_param 121 PoolingParameter
        power_param 122 PowerParameter
        relu_param 123 ReLUParameter
        softmax_param 125 SoftmaxParameter
        prelu_param 131 PReLUParameter
        flatten_param 135 FlattenParameter
        batch_norm_param 139 BatchNormParameter
        elu_param 140 ELUParameter
        scale_param 142 ScaleParameter
        input_param 143 InputParameter
    """,
    "NetParameter": """
        name 1 string
        layers 2 Unread*
        input 3 string*
        input_dim 4 int32*
        input_shape 8 BlobShape*
        layer 100 LayerParameter*
    """,
}


@cache
def message_class(name: str) -> Callable[[], Any]:
    """Return the class of a kind of message, such as ``"NetParameter"``.

    Raises:
        MissingExtraError: protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pool, message_factory
    except ImportError as error:
        raise MissingExtraError("protobuf", "formats") from error
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_file_descriptor())
    found: Callable[[], Any] = message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")
    )
    return found


def parse_binary(path: Path, kind: str) -> Any:
    """Read a message from a binary file.

    Raises:
        WeightsError: the file is empty, cut short or something else.
    """
    message = message_class(kind)()
    from google.protobuf.message import DecodeError

    content = path.read_bytes()
    if not content:
        raise WeightsError("the file is empty: fetch it again")
    _refuse_swarm(content)
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise WeightsError("this is not a whole Caffe file: fetch it again") from error
    return message


def parse_text(path: Path, kind: str) -> Any:
    """Read a message from a text file.

    Raises:
        WeightsError: the file is empty, too large, or no text of that kind.
    """
    message = message_class(kind)()
    from google.protobuf import text_format

    size = path.stat().st_size
    if not 0 < size <= _TEXT_LIMIT:
        raise WeightsError(f"{size} bytes cannot be the text of a network: give its .prototxt")
    try:
        text = path.read_bytes().decode()
        _refuse_nesting(text)
        text_format.Parse(text, message, allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"this is not the text of a Caffe network ({reason})") from error
    return message


def _refuse_nesting(text: str) -> None:
    """Refuse text whose parts lie in each other without end: the parser goes down with them."""
    depth = 0
    for bracket in re.findall("[{}<>]", text):
        depth += 1 if bracket in "{<" else -1
        if depth > _DEPTH_LIMIT:
            raise WeightsError(
                f"this is not the text of a Caffe network (nested more than {_DEPTH_LIMIT} deep)"
            )


def _refuse_swarm(content: bytes) -> None:
    """Refuse a file of countless empty parts, each of which takes a hundred times more memory when read."""
    budget = _PARTS_LIMIT
    messages = [(0, len(content))]
    for message in messages:
        for number, start, end in _parts(content, *message):
            budget -= 1
            if budget < 0:
                raise WeightsError("it has more parts than any network: the file is damaged, fetch it again")
            if number == _LAYER and message is messages[0]:
                messages.append((start, end))


def _parts(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field of a message, as far as it is whole."""
    while at < end:
        key, at = _varint(content, at, end)
        start = at
        match key & 7:
            case 0:
                _, at = _varint(content, at, end)
            case 1:
                at += 8
            case 2:
                size, start = _varint(content, at, end)
                at = start + size
            case 5:
                at += 4
            case _:
                return
        if at > end:
            return
        yield key >> 3, start, at


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number and where it ends; a place past the `end` where it is cut short."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    return 0, end + 1


def _file_descriptor() -> bytes:
    """Return the tables above as protobuf's own description of a file."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

    file = FileDescriptorProto(name="reskit_caffe.proto", package=_PACKAGE, syntax="proto2")
    for name, values in _ENUMS.items():
        # In a message each, because the names of an enumeration's values are its surroundings' too.
        enum = file.message_type.add(name=name).enum_type.add(name="Value")
        for number, value in enumerate(values.split()):
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for line in fields.strip().splitlines():
            _add_field(message, FieldDescriptorProto, *line.split())
    return bytes(file.SerializeToString())


def _add_field(message: Any, kinds: Any, name: str, number: str, kind: str, default: str = "") -> None:
    """Add one line of the tables to the description of a message."""
    repeated = kind.endswith("*")
    kind = kind.removesuffix("*")
    field = message.field.add(
        name=name,
        number=int(number),
        label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
    )
    if default:
        field.default_value = default
    if kind in _ENUMS or kind in _MESSAGES:
        field.type = kinds.TYPE_ENUM if kind in _ENUMS else kinds.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}" + (".Value" if kind in _ENUMS else "")
    else:
        field.type = getattr(kinds, f"TYPE_{kind.upper()}")
