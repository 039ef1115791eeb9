"""Weights from PyTorch and safetensors files; nothing is ever unpickled."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reskit.errors import WeightsError

__all__ = ["KeyReport", "load_into", "load_state"]

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
_SHOWN = 6  # names listed in an error; the rest is counted


@dataclass(frozen=True)
class KeyReport:
    """What became of every name in a weights file and in the model.

    Attributes:
        matched: names in the model that the file filled.
        renamed: old name in the file to its name in the model; these are matched too.
        missing: names in the model that the file lacks.
        unexpected: names in the file that the model lacks.
        mismatched: name to the shape in the file and the shape in the model.
    """

    matched: Sequence[str]
    renamed: Mapping[str, str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


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


def load_into(
    model: nn.Module, path: str | Path, *, strict: bool = True, ignore: Collection[str] = ()
) -> KeyReport:
    """Load the weights in a file into a model.

    The model is changed only if all is well. The counter ``num_batches_tracked``, which older files lack and
    nothing reads, may be missing.

    Args:
        model: what to fill; its `renames`, if any, translate older names.
        path: see :func:`load_state`.
        strict: whether every name must match; otherwise those that do are loaded.
        ignore: first parts of names in the file, such as ``"fc"``, that may be left over.

    Returns:
        What became of every name.

    Raises:
        WeightsError: the file cannot be read, or, if strict, a name or a shape does not fit.
    """
    own = model.state_dict()
    state, renamed = _rename(load_state(path), getattr(model, "renames", ()))
    fitting = {name: t for name, t in state.items() if name in own and t.shape == own[name].shape}
    report = KeyReport(
        matched=tuple(fitting),
        renamed=renamed,
        missing=tuple(n for n in own if n not in state and not n.endswith("num_batches_tracked")),
        unexpected=tuple(n for n in state if n not in own),
        mismatched={
            n: (tuple(t.shape), tuple(own[n].shape))
            for n, t in state.items()
            if n in own and n not in fitting
        },
    )
    if strict:
        _refuse_misfits(report, path, ignore)
    model.load_state_dict(fitting, strict=False)
    return report


def _refuse_misfits(report: KeyReport, path: str | Path, ignore: Collection[str]) -> None:
    """Raise a WeightsError that names what does not fit and says what to do."""
    unexpected = [n for n in report.unexpected if n.split(".")[0] not in ignore]
    shapes = [f"{n} is {theirs} there and {ours} here" for n, (theirs, ours) in report.mismatched.items()]
    problems = []
    if report.missing:
        problems.append(f"missing there: {_some(report.missing)}")
    if unexpected:
        problems.append(f"unknown here: {_some(unexpected)}")
    if shapes:
        problems.append(f"{_some(shapes)}")
    if not problems:
        return
    if shapes and not report.missing and not unexpected:
        advice = (
            "build the model with the num_classes and in_channels the file was made with "
            "(for published weights the defaults of create_model)"
        )
    else:
        advice = "check that the file was made with the same architecture"
    raise WeightsError(f"{path} does not fit the model: {'; '.join(problems)}; {advice}")


def _some(words: Sequence[str]) -> str:
    """Return the first few words and the number of the others."""
    rest = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _rename(
    state: Mapping[str, Tensor], renames: Sequence[tuple[str, str]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state under new names, and the old and new names that differ."""
    result, renamed = {}, {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in renames:
            new = re.sub(pattern, replacement, new)
        if new != name:
            renamed[name] = new
        result[new] = tensor
    return result, renamed


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


def _read_torch(path: Path) -> Any:
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
        return f"its keys are {_some([str(key) for key in content]) or 'none'}"
    return f"it holds a {type(content).__name__}"
