"""What every way of running a network promises: how it is written, how it is run, how exact it is."""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from reskit.errors import BackendError, InputError, MissingExtraError
from reskit.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from reskit.backends.servable import Servable

__all__ = ["BACKENDS", "PRECISIONS", "Backend", "Metadata", "Precision", "Runner", "Signature", "TensorSpec"]

Precision = Literal["fp32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, NumPy dtype and shape of one input or output; None in the shape is any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def zeros(self, batch: int, device: str = "cpu") -> Tensor:
        """Return a batch of zeros; what may have any size has one."""
        import torch

        shape = (batch, *(side or 1 for side in self.shape[1:]))
        return torch.zeros(shape, dtype=getattr(torch, self.dtype), device=device)

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('N' if side is None else str(side) for side in self.shape)})"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What goes into a runner and what comes out."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def check(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Refuse arrays that do not fit; return the batch size.

        Raises:
            InputError: a name missing or unknown, a dtype or a shape that does not fit, no example at all.
        """
        wanted = {spec.name: spec for spec in self.inputs}
        if inputs.keys() != wanted.keys():
            raise InputError(f"expected the inputs {sorted(wanted)}, got {sorted(inputs)}")
        for name, spec in wanted.items():
            array = inputs[name]
            if not isinstance(array, np.ndarray) or array.dtype != spec.dtype:
                found = getattr(array, "dtype", type(array).__name__)
                raise InputError(f"input {name!r} is {found}, expected {spec}")
            fits = len(array.shape) == len(spec.shape) and all(
                side is None or side == have for side, have in zip(spec.shape, array.shape, strict=True)
            )
            if not fits or 0 in array.shape:
                raise InputError(f"input {name!r} has shape {array.shape}, expected {spec}")
        sizes = {inputs[name].shape[0] for name in wanted}
        if len(sizes) > 1:
            raise InputError(f"the inputs have different batch sizes: {sorted(sizes)}")
        return int(sizes.pop())


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What travels inside an exported file, as JSON: enough to use it without the bundle.

    Attributes:
        backend: name of the backend that wrote the file.
        precision: what it computes in.
        model: name of the network.
        task: the task's config: labels and preprocessing.
        signature: inputs and outputs.
        bundle: checksum of the bundle it was made of.
        library: name and version of what wrote it.
    """

    backend: str
    precision: Precision
    model: str
    task: dict[str, Any]
    signature: Signature
    bundle: str
    library: str

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None, path: Path) -> Self:
        """Read what `to_json` wrote.

        Raises:
            BackendError: the file `path` holds none, or not ours.
        """
        try:
            values = json.loads(text or "")
            specs = {
                side: tuple(
                    TensorSpec(name=spec["name"], dtype=spec["dtype"], shape=tuple(spec["shape"]))
                    for spec in values["signature"][side]
                )
                for side in ("inputs", "outputs")
            }
            return cls(**{**values, "signature": Signature(**specs)})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BackendError(
                f"{path} was not exported by reskit: it says nothing of labels and preprocessing"
            ) from None


class Runner(ABC):
    """A network ready to run: named arrays in, named arrays out, any batch size, from any thread.

    Args:
        metadata: what the file says of itself.
    """

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata

    @property
    def signature(self) -> Signature:
        """Inputs and outputs."""
        return self.metadata.signature

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name.

        Raises:
            InputError: the inputs do not fit the signature.
        """
        self.signature.check(inputs)
        return self._run(inputs)

    def answer(self, raw: np.ndarray) -> np.ndarray:
        """Return the one output of a network that has one input; errors as `run`."""
        (given,), (said,) = self.signature.inputs, self.signature.outputs
        return self.run({given.name: raw})[said.name]

    @abstractmethod
    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of inputs that fit; may be called from several threads at once."""

    def warm_up(self, batch_size: int = 1, rounds: int = 2) -> None:
        """Run on zeros, so that what is done once a batch size is done."""
        inputs = {
            spec.name: np.zeros([batch_size, *(side or 1 for side in spec.shape[1:])], spec.dtype)
            for spec in self.signature.inputs
        }
        for _ in range(rounds):
            self.run(inputs)

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give threads and memory back; the runner is not used after that."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Backend(ABC):
    """One way to run networks.

    Attributes:
        name: its registered name.
        format: what `reskit export --to` calls the file it writes.
        suffix: of that file.
        beside: suffixes of what is written beside it, under the same stem.
        extra: the extra of reskit that brings its packages; None where the core does.
        run_needs: modules that running needs.
        export_needs: modules that writing needs besides.
        tolerance: precision to the largest difference from float32 eager that is still called agreement, as a
            part of the largest output; only these precisions can be written. What precision costs in accuracy
            is the guard's to say, not this: it catches graphs that are wrong.
        splits: whether one runner can work on several batches at once on separate cores (`streams`).
        compiles: whether `prepare` takes long.
        on_device: whether it is made for phones and boards; `reskit optimize` tries it only when named.
    """

    name: ClassVar[str]
    format: ClassVar[str]
    suffix: ClassVar[str]
    beside: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    run_needs: ClassVar[tuple[str, ...]] = ()
    export_needs: ClassVar[tuple[str, ...]] = ()
    tolerance: ClassVar[Mapping[Precision, float]]
    splits: ClassVar[bool] = False
    compiles: ClassVar[bool] = False
    on_device: ClassVar[bool] = False

    def require(self, *, export: bool = False) -> None:
        """Check that the packages are there.

        Raises:
            MissingExtraError: naming the first that is not, and the extra that brings it.
        """
        for module in self.run_needs + (self.export_needs if export else ()):
            if importlib.util.find_spec(module) is None:
                raise MissingExtraError(module, self.extra or self.name)

    def unsupported(self, precision: Precision) -> str | None:
        """Return why this machine cannot run a precision well, or None."""
        return None if precision in self.tolerance else f"{self.name} has no {precision}"

    @abstractmethod
    def write(
        self,
        model: Servable,
        path: Path,
        *,
        metadata: Metadata,
        samples: np.ndarray,
        keep: Sequence[str] = (),
    ) -> None:
        """Write a network to the file `path` in `metadata.precision`.

        Args:
            model: raw input to outputs, on the CPU, in evaluation mode; not altered.
            path: a file that is not there yet, its name ending in `suffix`; its folder exists. Files beside
                it carry the same stem.
            metadata: goes into the file.
            samples: raw input ``(N, ...)`` of the training data, to calibrate int8 with.
            keep: names of modules of `model` that int8 leaves in higher precision.

        Raises:
            BackendError: an operator or a precision cannot be written; says which.
        """

    def prepare(self, path: Path, batches: Collection[int]) -> None:  # noqa: B027 - most do so quickly
        """Do once what takes long when a file is first loaded and run at these batch sizes.

        It is done by another process: this one can go on meanwhile, in another thread.

        Raises:
            BackendError: it cannot be done.
        """

    @abstractmethod
    def load(self, path: Path, *, threads: int | None = None, streams: int = 1) -> Runner:
        """Return a runner of what `write` wrote.

        Args:
            path: the file.
            threads: processors to use in all; all that are usable when absent.
            streams: batches worked on at once, each on its part of the threads; more than 1 only where
                `splits`.

        Raises:
            BackendError: the file is missing, damaged, or of something else.
        """


BACKENDS: Registry[Backend] = Registry("backend")
