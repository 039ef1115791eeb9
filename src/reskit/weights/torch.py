"""Weights from PyTorch and safetensors files; nothing is ever unpickled."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from reskit.errors import WeightsError
from reskit.files import sha256
from reskit.weights.checkpoint import READERS, Checkpoint, Reader
from reskit.weights.report import some

__all__ = ["TORCH_SUFFIXES", "load_state"]

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
# How a file of torch.save begins that is not a zip archive: its magic number, pickled.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"

# Under these names training scripts keep the weights, beside the optimiser and the epoch. Averaged weights
# come first: they are what their authors evaluated.
_WRAPPERS = (
    "ema",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
)
# What DistributedDataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
# torch.save stores without compression. An archive may be packed again, but weights hardly shrink.
_MOST_INFLATION = 4


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a file, onto the CPU.

    Takes safetensors and what `torch.save` writes. A state dict kept under ``state_dict``, ``model``,
    ``ema`` or the like is found; the prefixes ``module.`` and ``_orig_mod.`` are taken off.

    Args:
        path: the file.

    Returns:
        Names to tensors.

    Raises:
        WeightsError: there is no such file, it cannot be read as weights, or it holds Python objects,
            which are never unpickled.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a directory: give the weights file in it")
    if not path.is_file():
        raise WeightsError(f"there is no weights file at {path}")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    state = _unwrap(content)
    if not state:
        raise WeightsError(f"{path} holds no state dict, {_describe(content)}: save model.state_dict()")
    return _without_prefixes(state)


def _claims_torch(sources: Sequence[str | Path]) -> bool:
    path = _single(sources)
    if path is None:
        return False
    if not path.is_file():
        return path.suffix.lower() in TORCH_SUFFIXES and not path.is_dir()
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PK"):  # the pickle of names is the first member torch.save writes
        return b"/data.pkl" in start or path.suffix.lower() in TORCH_SUFFIXES
    return start.startswith(_LEGACY) or (path.suffix.lower() in TORCH_SUFFIXES and not _is_safetensors(path))


def _claims_safetensors(sources: Sequence[str | Path]) -> bool:
    path = _single(sources)
    if path is None or path.is_dir():
        return False
    return path.suffix == ".safetensors" or (path.is_file() and _is_safetensors(path))


def _single(sources: Sequence[str | Path]) -> Path | None:
    """Return the one local file asked for, or None."""
    return Path(sources[0]) if len(sources) == 1 else None


def _read(format_name: str, sources: Sequence[str | Path]) -> Checkpoint:
    """Read the one file in `sources`; see :func:`load_state`."""
    path = Path(sources[0])
    state = load_state(path)
    return Checkpoint(
        format=format_name,
        source=str(sources[0]),
        state=state,
        provenance={"sha256": {path.name: sha256(path)}},
    )


READERS.add(
    "torch",
    Reader(
        claims=_claims_torch,
        read=lambda sources: _read("torch", sources),
        files="model.pth (or .pt, .bin, .ckpt, ...), as torch.save writes it",
    ),
)
READERS.add(
    "safetensors",
    Reader(
        claims=_claims_safetensors,
        read=lambda sources: _read("safetensors", sources),
        files="model.safetensors",
    ),
)


def _is_safetensors(path: Path) -> bool:
    """Tell a safetensors file by its name, or by its beginning: the length of a header, then JSON."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except Exception as error:  # whatever a broken file makes the reader raise, it is the same to the user
        raise WeightsError(
            f"{path} is not a whole safetensors file ({error}): fetch or save it again"
        ) from error


def _refuse_inflated(path: Path) -> None:
    """Refuse an archive whose members say they hold far more than the file does, before any is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # not a zip archive, or a broken one: PyTorch says which
    size = path.stat().st_size
    if claimed > _MOST_INFLATION * size:
        raise WeightsError(
            f"{path} has {size} bytes and says it unpacks to {claimed}, which no weights do: fetch it again"
        )


def _read_torch(path: Path) -> Any:
    _refuse_inflated(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old storage classes: nothing the user could mend
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes the reader raise, it is the same to the user
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise WeightsError(
                f"{path} holds pickled Python objects ({foreign[1]}), which reskit never loads because "
                "they can run code: where it was made, save model.state_dict() alone, or as safetensors"
            ) from error
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path} is a TorchScript program, not weights: where it was made, save its state_dict()"
            ) from error
        # PyTorch's own message may tell how to switch safety off, so only the kind of error is passed on.
        raise WeightsError(
            f"{path} is not a whole PyTorch weights file ({type(error).__name__}): fetch or save it again"
        ) from error


def _unwrap(content: Any) -> dict[str, Tensor] | None:
    """Return the state dict in what a file held, or None."""
    if not isinstance(content, Mapping) or not content:
        return None
    # The averaging of torch.optim.swa_utils counts its steps beside the weights.
    tensors = {name: value for name, value in content.items() if name != "n_averaged"}
    if all(isinstance(n, str) and isinstance(t, Tensor) for n, t in tensors.items()):
        return {name: tensor.detach() for name, tensor in tensors.items()}
    for wrapper in _WRAPPERS:
        state = _unwrap(content.get(wrapper))
        if state:
            return state
    return None


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that all names share, however they are nested."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_prefixes({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def _describe(content: Any) -> str:
    """Say what a file holds instead of a state dict."""
    if isinstance(content, Mapping):
        return f"its keys are {some([str(key) for key in content]) or 'none'}"
    return f"it holds a {type(content).__name__}"
