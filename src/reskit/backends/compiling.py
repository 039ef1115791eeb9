"""PyTorch Inductor compiling one file's programs: done in a process of its own, see `programs`.

The compiler changes settings and environment of its process, and holds memory that answering needs not.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from reskit.backends.base import Precision
from reskit.environment import on_x86

__all__ = ["OPTIONS", "compile_programs"]

OPTIONS = {
    "freezing": True,  # weights are constants, packed for the processor
    "cpp.dynamic_threads": True,  # one program for any number of threads
    "aot_inductor.precompile_headers": False,  # they save a few seconds and take 300 MB, in /tmp
    "aot_inductor.compile_wrapper_opt_level": "Og",  # as fast as O1, what calls the kernels compiles in 3/4
}
"""What programs depend on besides their network."""
# Any compiler that takes C++20 knows the instructions of x86: trying each takes 5 s of a core.
_UNTRIED = {"cpp.vec_isa_ok": True} if on_x86() else {}
_LOUD = ("torch.utils.cpp_extension", "torch._inductor", "torch.export")


def compile_programs(
    path: Path, precision: Precision, batches: Sequence[int], folder: Path, cache: Path
) -> Callable[[int], Callable[[], None]]:
    """Compile a network for batch sizes, each to a file of `folder` named after it; what a `Worker` builds.

    Args:
        path: what `graph_file.save_graph` wrote.
        precision: of the file.
        batches: batch sizes.
        folder: where programs go.
        cache: where the compiler keeps what it can use again; on the same file system.

    Raises:
        BackendError: the compiler fails, or the file is damaged.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "torch")
    if hasattr(os, "nice"):
        os.nice(10)  # compiling uses what is idle: what answers meanwhile hardly notices

    import torch
    from torch._inductor import aoti_compile_and_package, config

    from reskit.backends.graph_file import load_graph, read_metadata
    from reskit.backends.onnx_graph import first_line, quiet
    from reskit.errors import BackendError

    if precision == "int8":
        from reskit.backends.pt2e import x86_quantizer

        x86_quantizer()  # registers what turns rounded layers into int8 ones
    metadata = read_metadata(path, "inductor")
    graph = load_graph(path, metadata)
    for batch in batches:
        with (
            tempfile.TemporaryDirectory(dir=cache, prefix=".") as scratch,
            config.patch({**OPTIONS, **_UNTRIED, "aot_inductor.output_path": scratch}),
            quiet(*_LOUD),
            torch.no_grad(),
        ):
            package = Path(scratch, f"{batch}.pt2")
            program = torch.export.export(graph, (metadata.signature.inputs[0].zeros(batch),))
            try:
                aoti_compile_and_package(program, package_path=str(package))
            except Exception as error:  # the compiler's errors have no base class of their own
                raise BackendError(first_line(error)) from error
            package.replace(folder / package.name)
    return lambda batch: lambda: None
