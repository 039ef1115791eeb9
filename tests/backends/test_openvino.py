"""OpenVINO: what is written agrees with eager, runs without PyTorch, is refused when it is not whole."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reskit
from reskit.backends import BACKENDS, Precision, openvino
from reskit.backends.openvino import OpenVINO
from reskit.backends.servable import Servable, describe, servable
from reskit.bundle import Bundle
from reskit.errors import BackendError, InputError, MissingExtraError

BACKEND = BACKENDS.get("openvino")
try:
    BACKEND.require(export=True)
except MissingExtraError as error:
    pytest.skip(str(error), allow_module_level=True)
RUNS: list[Precision] = [precision for precision in BACKEND.tolerance if not BACKEND.unsupported(precision)]
PART = {"fp32": 1e-5, "bf16": 0.03, "fp16": 0.01, "int8": 0.1}


@pytest.fixture(scope="module")
def bundle(digits_run: Any) -> Bundle:
    return reskit.load(digits_run.bundle)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Servable:
    return servable(bundle)


@pytest.fixture(scope="module")
def samples(bundle: Bundle) -> np.ndarray:
    pictures: np.ndarray = bundle.samples["samples"].numpy()
    return pictures


@pytest.fixture(scope="module")
def files(
    bundle: Bundle, model: Servable, samples: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> dict[Precision, Path]:
    folder = tmp_path_factory.mktemp("openvino")
    written: dict[Precision, Path] = {}
    for precision in RUNS:
        written[precision] = folder / f"{precision}.xml"
        metadata = describe(bundle, "openvino", precision)
        BACKEND.write(model, written[precision], metadata=metadata, samples=samples[:64])
    pairs = [path.with_suffix(suffix) for path in written.values() for suffix in (".bin", ".xml")]
    assert sorted(folder.iterdir()) == sorted(pairs)
    return written


def eager(model: Servable, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        outputs: np.ndarray = model(torch.from_numpy(pixels)).numpy()
    return outputs


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("precision", RUNS)
def test_agrees_with_eager_at_any_batch_size(
    files: dict[Precision, Path], model: Servable, samples: np.ndarray, precision: Precision, streams: int
) -> None:
    assert PART[precision] < BACKEND.tolerance[precision]
    with BACKEND.load(files[precision], threads=streams, streams=streams) as runner:
        for batch in (1, 3, 100):
            expected = eager(model, samples[-batch:])
            found = runner.run({"image": samples[-batch:]})["output"]
            assert found.dtype == np.float32
            assert np.abs(found - expected).max() <= PART[precision] * np.abs(expected).max()
        assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.97


def test_files_are_as_small_as_their_precision(files: dict[Precision, Path]) -> None:
    sizes = {precision: path.with_suffix(".bin").stat().st_size for precision, path in files.items()}
    assert sizes["int8"] < 0.3 * sizes["fp32"]
    assert sizes.get("bf16", 0) < 0.52 * sizes["fp32"]


def test_the_file_says_what_it_is_and_nothing_of_where_it_was_made(
    files: dict[Precision, Path], bundle: Bundle
) -> None:
    for precision, path in files.items():
        with BACKEND.load(path) as runner:
            assert runner.metadata == describe(bundle, "openvino", precision)
        assert str(path.parent) not in path.read_text()
        assert str(Path(reskit.__file__).parent) not in path.read_text()


def rounded(network: Any) -> dict[str, bool]:
    """Return which convolutions and products have weights in int8."""
    found = {}
    for node in network.get_ops():
        if node.get_type_name() in ("Convolution", "MatMul"):
            name = node.get_friendly_name().removesuffix("/WithoutBiases")
            found[name] = node.input_value(1).get_node().get_type_name() != "Constant"
    return found


def test_int8_rounds_every_layer_and_one_input_of_each_sum(files: dict[Precision, Path]) -> None:
    network = openvino.core().read_model(files["int8"])
    assert len(rounded(network)) == 8
    assert all(rounded(network).values())
    sums = []
    for node in network.get_ops():
        kinds = [value.get_node().get_type_name() for value in node.input_values()]
        if node.get_type_name() == "Add" and "Constant" not in kinds:
            sums.append(kinds)
    assert sorted(sums) == [["Add", "FakeQuantize"], ["Add", "Pad"], ["Add", "Pad"]]


def test_what_is_kept_is_not_rounded(
    tmp_path: Path,
    bundle: Bundle,
    model: Servable,
    samples: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    temporary, path = tmp_path / "temporary", tmp_path / "kept.xml"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    arguments: dict[str, Any] = {
        "metadata": describe(bundle, "openvino", "int8"),
        "samples": samples[:4],
    }
    BACKEND.write(model, path, keep=["model.layer2", "model.linear"], **arguments)
    kept = {name for name, int8 in rounded(openvino.core().read_model(path)).items() if not int8}
    assert kept == {"model.layer2.0.conv1", "model.layer2.0.conv2", "model.linear"}
    assert list(temporary.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    with pytest.raises(BackendError, match=r"no layer of the network is named 'model.layer4'; did you mean"):
        BACKEND.write(model, path, keep=["model.layer4"], **arguments)


def test_running_needs_neither_torch_nor_onnx_nor_the_network(files: dict[Precision, Path]) -> None:
    code = f"""
        import sys
        from pathlib import Path
        import numpy as np
        from reskit.backends.openvino import OpenVINO
        runner = OpenVINO().load(Path({str(files["int8"])!r}), threads=1)
        assert runner.run({{"image": np.zeros((2, 1, 8, 8), np.uint8)}})["output"].shape == (2, 10)
        assert not {{"torch", "onnx", "nncf", "openvino_telemetry"}} & set(sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(line.strip() for line in code.splitlines())],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_telemetry_is_missing_only_while_others_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    package = type(sys)("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", package)
    with openvino._untold(), pytest.raises(ImportError):
        __import__("openvino_telemetry")
    assert sys.modules["openvino_telemetry"] is package
    loggers = logging.getLoggerClass()
    openvino._nncf()
    assert logging.getLoggerClass() is loggers


@pytest.mark.parametrize("streams", [1, 2])
def test_callers_at_once_get_their_own_answers(
    files: dict[Precision, Path], samples: np.ndarray, streams: int
) -> None:
    with BACKEND.load(files["int8"], threads=2, streams=streams) as runner:
        batches = [samples[i : i + 1 + i % 3] for i in range(40)]
        expected = [runner.run({"image": batch})["output"].copy() for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda batch: runner.run({"image": batch})["output"], batches))
    for one, other in zip(found, expected, strict=True):  # also: no later run wrote over an earlier answer
        np.testing.assert_array_equal(one, other)


def test_inputs_of_any_layout_are_read_and_left_alone(
    files: dict[Precision, Path], samples: np.ndarray
) -> None:
    with BACKEND.load(files["fp32"], threads=1) as runner:
        expected = runner.run({"image": samples[:4]})["output"]
        last = np.ascontiguousarray(samples[:4].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        locked = samples[:4].copy()
        locked.flags.writeable = False
        for pixels in (last, locked, np.repeat(samples[:4], 2, axis=0)[::2]):
            np.testing.assert_allclose(runner.run({"image": pixels})["output"], expected, atol=1e-5)
        np.testing.assert_array_equal(locked, samples[:4])
        runner.warm_up(2, rounds=1)
        with pytest.raises(InputError, match="expected uint8"):
            runner.run({"image": np.zeros((1, 1, 8, 9), np.uint8)})


def test_threads_and_streams_are_those_asked_for(files: dict[Precision, Path]) -> None:
    with BACKEND.load(files["fp32"], threads=1) as runner:
        compiled = runner._compiled  # type: ignore[attr-defined]
        assert compiled.get_property("INFERENCE_NUM_THREADS") == compiled.get_property("NUM_STREAMS") == 1
        assert compiled.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut", "text", "no bin", "cut bin", "empty bin", "other bin", "foreign"]
)
def test_files_that_are_not_whole_are_refused_in_one_line(
    files: dict[Precision, Path], tmp_path: Path, damage: str
) -> None:
    path = Path(shutil.copy(files["fp32"], tmp_path / "network.xml"))
    weights = Path(shutil.copy(files["fp32"].with_suffix(".bin"), tmp_path / "network.bin"))
    graph, values = path.read_text(), bytearray(weights.read_bytes())
    values[len(values) // 2] ^= 255
    changes: dict[str, Any] = {
        "missing": lambda: path.unlink(),
        "empty": lambda: path.write_text(""),
        "cut": lambda: path.write_text(graph[: len(graph) // 2]),
        "text": lambda: path.write_text("hello"),
        "no bin": lambda: weights.unlink(),
        "cut bin": lambda: weights.write_bytes(values[:1000]),
        "empty bin": lambda: weights.write_bytes(b""),
        "other bin": lambda: weights.write_bytes(values),
        "foreign": lambda: path.write_text(
            graph.replace("<reskit>", "<other>").replace("</reskit>", "</other>")
        ),
    }
    changes[damage]()
    with pytest.raises(BackendError, match=r"network\.(xml|bin)") as raised:
        BACKEND.load(path)
    assert "\n" not in str(raised.value)


def test_precisions_the_processor_lacks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8", "BF16"]

    monkeypatch.setattr(openvino, "core", Core)
    assert [BACKEND.unsupported(precision) is None for precision in ("fp32", "int8", "bf16")] == [True] * 3
    assert BACKEND.unsupported("fp16") == "this processor has no fp16 that OpenVINO could use"
    assert isinstance(BACKEND, OpenVINO)
