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
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from reskit.backends.base import Metadata
from reskit.backends.onnx_graph import first_line, quiet
from reskit.environment import fingerprint
from reskit.errors import BackendError
from reskit.files import own_cache, sha256, writing

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LARGEST", "Programs", "compiler_missing"]

LARGEST = 32
"""Batch size from which on more examples at once are not faster."""

Program: TypeAlias = "Callable[[Tensor], Tensor]"

_OPTIONS = {
    "freezing": True,  # weights are constants, packed for the processor
    "cpp.dynamic_threads": True,  # one program for any number of threads
    "aot_inductor.precompile_headers": False,  # they would lie in /tmp, 150 MB each, and need openssl
}
_LOUD = ("torch.utils.cpp_extension", "torch._inductor", "torch.export")
_COMPILING = threading.Lock()  # settings and environment are those of the process


class Programs:
    """The compiled programs of one file: pixels to outputs, any batch size, from any thread.

    Args:
        path: what `graph_file.save_graph` wrote.
        metadata: what it says of itself.

    Raises:
        BackendError: the file is damaged, or must be compiled and there is no compiler.
        ConfigError: others may write to the folder of programs.
        MissingExtraError: it is int8, must be compiled, and torchao is not installed.
    """

    def __init__(self, path: Path, metadata: Metadata) -> None:
        import torch

        self._path, self._sum = path, sha256(path)
        self._shape = tuple(side or 1 for side in metadata.signature.inputs[0].shape[1:])
        self._metadata = metadata
        self._cache = own_cache("inductor")
        key = f"{self._sum} {torch.__version__} {fingerprint()['id']} {_OPTIONS}"
        self._folder = self._cache / hashlib.sha256(key.encode()).hexdigest()
        self._ready: dict[int, Program] = {}
        for file in self._folder.glob("*.pt2"):
            with contextlib.suppress(RuntimeError):  # damaged: it is compiled again when needed
                self._ready[int(file.stem)] = _opened(file)
        self.compile(1)

    def compile(self, batch: int) -> None:
        """Make the program for a batch size, unless it is there.

        Raises:
            BackendError: there is no compiler, or it fails.
            MissingExtraError: int8 is to be compiled and torchao is not installed.
        """
        with _COMPILING:
            if batch in self._ready:
                return
            if reason := compiler_missing():
                raise BackendError(f"{self._path} must be compiled on this machine, but {reason}")
            if sha256(self._path) != self._sum:
                raise BackendError(f"{self._path} was replaced since it was loaded; load it again")
            file = self._folder / f"{batch}.pt2"
            with writing(file):
                self._folder.mkdir(exist_ok=True)
            self._compile(batch, file)
            self._ready[batch] = _opened(file)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the outputs of uint8 `(N, C, H, W)`, computed in as few pieces as there are programs for."""
        import torch

        outputs, start = [], 0
        for size in sorted(self._ready, reverse=True):
            while len(pixels) - start >= size:
                outputs.append(self._ready[size](pixels[start : start + size]))
                start += size
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _compile(self, batch: int, file: Path) -> None:
        import torch
        from torch._inductor import aoti_compile_and_package, config

        from reskit.backends.graph_file import load_graph

        if self._metadata.precision == "int8":
            from reskit.backends.pt2e import x86_quantizer

            x86_quantizer()  # registers what turns rounded layers into int8 ones
        with (
            tempfile.TemporaryDirectory(dir=self._cache, prefix=".") as scratch,
            _environment(TORCHINDUCTOR_CACHE_DIR=str(self._cache / "torch")),
            config.patch({**_OPTIONS, "aot_inductor.output_path": scratch}),
            quiet(*_LOUD),
            torch.inference_mode(mode=False),
            torch.no_grad(),
        ):
            graph = load_graph(self._path, self._metadata)
            example = self._metadata.signature.inputs[0].zeros(batch)
            package = Path(scratch, file.name)
            try:
                aoti_compile_and_package(torch.export.export(graph, (example,)), package_path=str(package))
            except Exception as error:  # the compiler's errors have no base class of their own
                raise BackendError(f"{self._path} cannot be compiled: {first_line(error)}") from error
            package.replace(file)


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


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
