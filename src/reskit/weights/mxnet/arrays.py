"""The arrays in a ``.params`` file of MXNet, of every version of that format."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reskit.errors import WeightsError

__all__ = ["read_arrays"]

_LIST = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DENSE = 0
_DIMENSIONS_LIMIT = 32
_KINDS: Mapping[int, str] = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8"}


def read_arrays(content: bytes) -> dict[str, Tensor]:
    """Return names to arrays.

    Arrays without names, as `mx.nd.save` writes lists, are called ``"0"``, ``"1"`` and so on. Every length is
    checked against the size of the file before it is believed.

    Raises:
        WeightsError: the file is cut short, damaged or something else, or its arrays are sparse.
    """
    file = _Bytes(content)
    if file.number("<Q") != _LIST:
        raise WeightsError("this is no .params file of MXNet: give what mx.nd.save or save_parameters wrote")
    file.number("<Q")  # reserved
    arrays = [file.array() for _ in range(file.count(at_least=8))]
    names = [file.name() for _ in range(file.count(at_least=8))]
    if not arrays or (names and len(names) != len(arrays)) or len(set(names)) != len(names):
        raise WeightsError(f"{len(arrays)} arrays and {len(set(names))} names: the file is damaged")
    return dict(zip(names or map(str, range(len(arrays))), arrays, strict=True))


class _Bytes:
    """Reads what is in a file from its beginning."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, size: int) -> bytes:
        """Return the next bytes, if there are so many."""
        if size > len(self._content) - self._at:
            raise WeightsError(
                f"the file ends at byte {len(self._content)}, and {size} bytes were to come from byte"
                f" {self._at}: fetch it again"
            )
        self._at += size
        return self._content[self._at - size : self._at]

    def number(self, kind: str) -> int:
        """Return the next number of a kind `struct` knows."""
        value: int = struct.unpack(kind, self.take(struct.calcsize(kind)))[0]
        return value

    def count(self, at_least: int) -> int:
        """Return the next number, of things of at least so many bytes each."""
        count = self.number("<Q")
        if count * at_least > len(self._content) - self._at:
            raise WeightsError(f"the file cannot hold the {count} entries it speaks of: fetch it again")
        return count

    def name(self) -> str:
        """Return the next name."""
        try:
            return self.take(self.number("<Q")).decode()
        except UnicodeDecodeError as error:
            raise WeightsError("an array's name is no text: the file is damaged, fetch it again") from error

    def array(self) -> Tensor:
        """Return the next array."""
        magic = self.number("<I")
        if magic in (_V2, _V3) and self.number("<i") != _DENSE:
            raise WeightsError("it holds sparse arrays, which are not read: save them dense")
        if magic in (_V1, _V2, _V3):
            dimensions, size_kind = self.number("<i"), "q"
        else:  # the oldest files begin with the number of dimensions
            dimensions, size_kind = magic, "I"
        least = 0 if magic == _V3 else 1  # one number, without any dimension, came with the third version
        if not least <= dimensions <= _DIMENSIONS_LIMIT:
            raise WeightsError(
                f"an array of {dimensions} dimensions: the file is damaged, or of another kind"
            )
        sizes = f"<{dimensions}{size_kind}"
        shape: tuple[Any, ...] = struct.unpack(sizes, self.take(struct.calcsize(sizes)))
        self.take(8)  # the device it was on
        flag = self.number("<i")
        if flag not in _KINDS:
            raise WeightsError(f"an array of the unknown kind {flag}: save it as float32")
        if min(shape, default=1) < 1:
            raise WeightsError(
                f"an array of shape {shape}: the file is damaged, or was saved before training"
            )
        kind = np.dtype(_KINDS[flag])
        raw = self.take(math.prod(shape) * kind.itemsize)
        return torch.from_numpy(np.frombuffer(raw, kind).astype(kind.newbyteorder("=")).reshape(shape))
