"""Damaged and hostile weights: every reader against mutated real files, by Hypothesis, a minute each.

A reader may read a mutated file or refuse it with one `WeightsError` of one line. Anything else is a finding:
another exception, a slow answer, memory that grows far beyond the file.

    python benchmarks/fuzz_weights.py --data PATH_TO_DATA --seconds 60
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import reskit
from common import write_result
from reskit.errors import WeightsError
from reskit.weights import read_checkpoint

EXAMPLES = 200  # between two looks at the clock


def main() -> None:
    """Fuzz every reader and write `results/fuzz-weights.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets and weights")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each reader")
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, files in victims(options.data / "weights", Path(scratch)).items():
            figures[name] = fuzz(files, Path(scratch) / "mutated", options.seconds)
            print(name, figures[name], flush=True)
    write_result("fuzz-weights", {"seconds_each": options.seconds, "readers": figures})


def victims(weights: Path, scratch: Path) -> dict[str, list[Path]]:
    """Return the files of each reader; the first is mutated."""
    tiny = reskit.create_model("cifar_resnet8")
    torch.save(tiny.state_dict(), scratch / "tiny.pth")
    from safetensors.torch import save_file

    save_file(tiny.state_dict(), scratch / "tiny.safetensors")
    caffe = weights / "caffe-cifar-resnet20"
    mxnet = weights / "mxnet-mobilefacenet"
    keras = weights / "mlperf-tiny-resnet8"
    (model,) = caffe.glob("*.caffemodel")
    (text,) = caffe.glob("*.prototxt")
    return {
        "torch": [scratch / "tiny.pth"],
        "safetensors": [scratch / "tiny.safetensors"],
        "caffe": [model, text],
        "caffe-prototxt": [text, model],
        "mxnet-params": [mxnet / "model-0000.params", mxnet / "model-symbol.json"],
        "mxnet-symbol": [mxnet / "model-symbol.json", mxnet / "model-0000.params"],
        "keras": [keras / "pretrainedResnet.h5"],
        "tflite": [keras / "pretrainedResnet.tflite"],
    }


def mutations(size: int) -> st.SearchStrategy[tuple[int, list[tuple[int, bytes]]]]:
    """Return a strategy for a length to cut to and bytes to put in places, more of them near the front."""
    place = st.one_of(st.integers(0, min(size, 512) - 1), st.integers(0, size - 1))
    patch = st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from([b"\xff" * 8, b"\x00" * 8, b"\xff\xff\xff\x7f", (2**40).to_bytes(8, "little")]),
    )
    cut = st.one_of(st.just(size), st.integers(0, size))
    return st.tuples(cut, st.lists(st.tuples(place, patch), max_size=6))


def fuzz(files: list[Path], folder: Path, seconds: float) -> dict[str, Any]:
    """Mutate the first file until the time is over; return what came of it."""
    folder.mkdir(exist_ok=True)
    victim, *others = files
    original = victim.read_bytes()
    mutated = folder / victim.name
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def attempt(mutation: tuple[int, list[tuple[int, bytes]]]) -> None:
        nonlocal slowest
        length, patches = mutation
        content = bytearray(original)
        for place, patch in patches:
            content[place : place + len(patch)] = patch
        mutated.write_bytes(content[:length])
        begin = time.process_time()
        try:
            read_checkpoint(mutated, *others)
        except WeightsError as error:
            if "\n" in str(error):
                raise RuntimeError(f"an error of several lines: {error}") from error
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
        slowest = max(slowest, time.process_time() - begin)

    deadline, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        run = given(mutations(len(original)))(attempt)
        run = settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(run)
        seed(rounds)(run)()
        rounds += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    return {
        **dict(outcomes),
        "slowest_cpu_seconds": round(slowest, 3),
        "file_mib": round(len(original) / 2**20, 2),
        "memory_growth_mib": round(grown / 1024, 1),
    }


if __name__ == "__main__":
    main()
