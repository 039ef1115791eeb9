"""PyTorch in eager mode, as a backend."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reskit
from reskit.backends import BACKENDS, Precision, Runner, eager
from reskit.backends.graph_file import load_graph
from reskit.backends.servable import describe, servable
from reskit.bundle import Bundle
from reskit.errors import BackendError, InputError

BACKEND = BACKENDS.get("torch")
PART = {"fp32": 1e-5, "bf16": 0.03}


@pytest.fixture(scope="module")
def bundle(digits_run: Any) -> Bundle:
    return reskit.load(digits_run.bundle)


@pytest.fixture(scope="module")
def files(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    folder = tmp_path_factory.mktemp("torch")
    samples = bundle.samples["samples"].numpy()
    written: dict[Precision, Path] = {}
    for precision in BACKEND.tolerance:
        written[precision] = folder / f"{precision}.safetensors"
        metadata = describe(bundle, "torch", precision)
        BACKEND.write(servable(bundle), written[precision], metadata=metadata, samples=samples)
    return written


@pytest.fixture(scope="module")
def runner(files: dict[Precision, Path]) -> Runner:
    return BACKEND.load(files["fp32"], threads=1)


def pictures(bundle: Bundle, batch: int) -> np.ndarray:
    samples: np.ndarray = bundle.samples["samples"].numpy()
    return samples[batch : 2 * batch].copy()


@torch.inference_mode()
def expected(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    answer: np.ndarray = bundle.model(bundle.task.inputs({"image": torch.from_numpy(images)})).numpy()
    return answer


@pytest.mark.parametrize("precision", PART)
@pytest.mark.parametrize("batch", [1, 3])
def test_agrees_with_the_bundle(
    precision: Precision, batch: int, bundle: Bundle, files: dict[Precision, Path]
) -> None:
    with BACKEND.load(files[precision], threads=1) as runner:
        found = runner.run({"image": pictures(bundle, batch)})["output"]
    wanted = expected(bundle, pictures(bundle, batch))
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= PART[precision] * np.abs(wanted).max()
    assert BACKEND.tolerance[precision] >= PART[precision]


def test_the_file_says_what_it_is(bundle: Bundle, runner: Runner) -> None:
    assert runner.metadata == describe(bundle, "torch", "fp32")
    assert runner.metadata.task["labels"] == bundle.task.labels


def test_norms_are_folded_and_weights_are_channels_last(
    bundle: Bundle, files: dict[Precision, Path], runner: Any
) -> None:
    operators = [str(node.target) for node in load_graph(files["fp32"], runner.metadata).graph.nodes]
    assert operators.count("aten.conv2d.default") == 7
    assert not any("batch_norm" in name for name in operators)
    weights = [w for w in runner._network.buffers() if w.dim() == 4 and min(w.shape[1:]) > 1]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert len(weights) == 6  # all convolutions but the first, which sees one channel


def test_threads_get_what_they_asked_for(bundle: Bundle, runner: Runner) -> None:
    batches = [pictures(bundle, batch) for batch in (1, 2, 3, 4)] * 8
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda images: runner.run({"image": images})["output"], batches))
    for images, answer in zip(batches, found, strict=True):
        np.testing.assert_allclose(answer, expected(bundle, images), rtol=1e-4, atol=1e-4)


def test_each_runner_has_its_number_of_threads(bundle: Bundle, files: dict[Precision, Path]) -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    runners: list[Any] = [BACKEND.load(files["fp32"], threads=threads) for threads in (1, 2)]

    def counting(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return pixels.float()

    def ask() -> None:
        for runner in runners:
            runner.run({"image": pictures(bundle, 1)})

    for runner in runners:
        runner._network = counting
    try:
        ask()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(ask).result()
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2, 1, 2]


def test_arrays_that_cannot_be_written_to_or_are_turned_around(bundle: Bundle, runner: Runner) -> None:
    images = pictures(bundle, 2)
    wanted = runner.run({"image": images})["output"]
    flipped = images[:, :, ::-1].copy()
    images.flags.writeable = False
    assert np.array_equal(runner.run({"image": images})["output"], wanted)
    assert np.array_equal(runner.run({"image": flipped[:, :, ::-1]})["output"], wanted)


def test_wrong_inputs(bundle: Bundle, runner: Runner) -> None:
    images = pictures(bundle, 1)
    for wrong in ({"image": images.astype(np.float32)}, {"image": images[:, :, 1:]}, {"pixels": images}):
        with pytest.raises(InputError):
            runner.run(wrong)


def test_files_of_other_backends(files: dict[Precision, Path], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="is not there"):
        BACKEND.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(BackendError, match="written for torch, not for inductor"):
        BACKENDS.get("inductor").load(files["fp32"])


def test_precisions_this_machine_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "fingerprint", lambda: {"instructions": ["avx2"]})
    assert BACKEND.unsupported("fp32") is None
    assert BACKEND.unsupported("bf16") == "this processor has no instructions for bf16"
    assert BACKEND.unsupported("int8") == "torch has no int8"
    monkeypatch.setattr(eager, "fingerprint", lambda: {"instructions": ["avx512_bf16"]})
    assert BACKEND.unsupported("bf16") is None
