"""Programs that PyTorch Inductor compiled on this machine, kept from one process to the next.

A program is a shared library: whoever may write one runs code. So none travels in a bundle; they lie in a
folder that only the user can write to, `reskit/inductor` in `RESKIT_CACHE`, else in `XDG_CACHE_HOME`, else in
`~/.cache`. It may be deleted at any time.

A program is compiled for one batch size, since only then does PyTorch pack the weights of convolutions
beforehand and not in every call (torch/_inductor/fx_passes/mkldnn_fusion.py). They are compiled ahead of time
because `torch.compile` traces and packs anew in every process: a frozen network bypasses its cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from reskit.backends.base import Metadata
from reskit.backends.compiling import OPTIONS, compile_programs
from reskit.backends.worker import Worker, WorkerError
from reskit.environment import fingerprint
from reskit.errors import BackendError, ConfigError, MissingExtraError, OutputError
from reskit.files import ANOTHER_CACHE, own_cache, sha256, writing

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LARGEST", "Programs", "compiler_missing"]

LARGEST = 32
"""Batch size from which on more examples at once are not faster."""

Program: TypeAlias = "Callable[[Tensor], Tensor]"

_LONGEST_S = 3600.0
"""Time that compiling may take: a large network on a busy small machine."""


class Programs:
    """The compiled programs of one file: pixels to outputs, any batch size, from any thread.

    Args:
        path: what `graph_file.save_graph` wrote.
        metadata: what it says of itself.
        batches: batch sizes to have programs for, besides 1.

    Raises:
        BackendError: the file is damaged, must be compiled and there is no compiler, or others may write to
            the folder of programs.
        MissingExtraError: it is int8, must be compiled, and torchao is not installed.
    """

    def __init__(self, path: Path, metadata: Metadata, batches: Collection[int] = (1,)) -> None:
        import torch

        self._path, self._sum, self._precision = path, sha256(path), metadata.precision
        try:
            self._cache = own_cache("inductor")
        except (ConfigError, OutputError) as error:  # other backends need no such folder
            raise BackendError(f"compiled programs cannot be kept: {error}") from None
        key = f"{self._sum} {torch.__version__} {fingerprint()['id']} {OPTIONS}"
        self._folder = self._cache / hashlib.sha256(key.encode()).hexdigest()
        self._ready: dict[int, Program] = {}
        self._compiling = threading.Lock()
        for file in self._folder.glob("*.pt2"):
            with contextlib.suppress(RuntimeError):  # damaged: it is compiled again when needed
                self._ready[int(file.stem)] = _opened(file)
        self.compile({1, *batches})

    def compile(self, batches: Collection[int]) -> None:
        """Make the programs for batch sizes, unless they are there; larger ones than `LARGEST` are cut.

        Raises:
            BackendError: there is no compiler, or it fails.
            MissingExtraError: int8 is to be compiled and torchao is not installed.
        """
        with self._compiling:
            missing = sorted({min(batch, LARGEST) for batch in batches} - self._ready.keys())
            if not missing:
                return
            if reason := compiler_missing():
                raise BackendError(f"{self._path} must be compiled on this machine, but {reason}")
            if self._precision == "int8" and find_spec("torchao") is None:
                raise MissingExtraError("torchao", "torchao")
            if sha256(self._path) != self._sum:
                raise BackendError(f"{self._path} was replaced since it was loaded; load it again")
            with writing(self._folder, instead=ANOTHER_CACHE):
                self._folder.mkdir(exist_ok=True)
            asked = self._path, self._precision, missing, self._folder, self._cache
            try:
                with Worker(
                    compile_programs, *asked, timeout=_LONGEST_S, environment={"OMP_WAIT_POLICY": "PASSIVE"}
                ) as worker:
                    worker.wait_ready()
            except WorkerError as error:
                raise BackendError(f"{self._path} cannot be compiled: {error.reason}") from None
            self._ready |= {batch: _opened(self._folder / f"{batch}.pt2") for batch in missing}

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the outputs of uint8 `(N, C, H, W)`, computed in as few pieces as there are programs for."""
        import torch

        outputs, start = [], 0
        for size in sorted(self._ready, reverse=True):
            while len(pixels) - start >= size:
                outputs.append(self._ready[size](pixels[start : start + size]))
                start += size
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def compiler_missing() -> str | None:
    """Return that there is no C++ compiler, or None."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    command = shlex.split(os.environ.get("CXX") or usual)[0]
    if shutil.which(command):
        return None
    return f"there is no C++ compiler: {command} is not found; install it, or name another in CXX"


def _opened(file: Path) -> Program:
    """Return a compiled program.

    Raises:
        RuntimeError: it is damaged.
    """
    from torch._C._aoti import AOTIModelPackageLoader

    # As `torch._inductor.aoti_load_package` does, without importing the compiler: 1.7 s and 150 MB.
    loader = AOTIModelPackageLoader(str(file), "model", False, 1, -1)
    return lambda pixels: loader.run([pixels])[0]
