"""ONNX Runtime: what is written agrees with eager, runs without PyTorch, is refused when it is not whole."""

from __future__ import annotations

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
from reskit.backends import BACKENDS, Precision
from reskit.backends.onnx_graph import METADATA_KEY
from reskit.backends.onnxruntime import OnnxRuntime
from reskit.backends.servable import Servable, describe, servable
from reskit.bundle import Bundle
from reskit.errors import BackendError, InputError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BACKEND = BACKENDS.get("onnxruntime")


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
    folder = tmp_path_factory.mktemp("onnxruntime")
    written: dict[Precision, Path] = {}
    for precision in BACKEND.tolerance:
        written[precision] = folder / f"{precision}.onnx"
        metadata = describe(bundle, "onnxruntime", precision)
        BACKEND.write(model, written[precision], metadata=metadata, samples=samples[:64])
    assert sorted(folder.iterdir()) == sorted(written.values())
    return written


def eager(model: Servable, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        outputs: np.ndarray = model(torch.from_numpy(pixels)).numpy()
    return outputs


@pytest.mark.parametrize(("precision", "part"), [("fp32", 1e-5), ("int8", 0.1)])
def test_agrees_with_eager_at_any_batch_size(
    files: dict[Precision, Path], model: Servable, samples: np.ndarray, precision: Precision, part: float
) -> None:
    assert part < BACKEND.tolerance[precision]
    with BACKEND.load(files[precision], threads=1) as runner:
        for batch in (1, 3, 100):
            expected = eager(model, samples[-batch:])
            found = runner.run({"image": samples[-batch:]})["output"]
            assert found.dtype == np.float32
            assert np.abs(found - expected).max() <= part * np.abs(expected).max()
        assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.97


def test_int8_runs_in_int8(files: dict[Precision, Path], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(files["int8"], options, providers=["CPUExecutionProvider"])
    layers = [node.op_type for node in onnx.load(files["fp32"]).graph.node]
    found = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert found.count("QLinearConv") == layers.count("Conv") == 7
    assert found.count("QLinearAdd") == 3
    assert "Conv" not in found
    assert files["int8"].stat().st_size < 0.5 * files["fp32"].stat().st_size


def test_the_file_says_what_it_is(files: dict[Precision, Path], bundle: Bundle) -> None:
    for precision, path in files.items():
        expected = describe(bundle, "onnxruntime", precision)
        assert [entry.key for entry in onnx.load(path).metadata_props] == [METADATA_KEY]
        with BACKEND.load(path) as runner:
            assert runner.metadata == expected
            assert runner.signature == expected.signature


def test_what_is_kept_stays_in_float32(
    tmp_path: Path,
    bundle: Bundle,
    model: Servable,
    samples: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    path, metadata = tmp_path / "kept.onnx", describe(bundle, "onnxruntime", "int8")
    BACKEND.write(model, path, metadata=metadata, samples=samples[:8], keep=["model.layer2", "model.linear"])
    graph = onnx.load(path).graph
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    kept = {node.name for node in graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] in floats}
    assert kept == {"model.layer2.0.conv1", "model.layer2.0.conv2", "model.linear"}
    assert list(temporary.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    with pytest.raises(BackendError, match=r"no layer of the network is named 'model.layer4'; did you mean"):
        BACKEND.write(model, path, metadata=metadata, samples=samples[:8], keep=["model.layer4"])


def test_running_needs_neither_torch_nor_onnx(files: dict[Precision, Path]) -> None:
    code = f"""
        import sys
        from pathlib import Path
        import numpy as np
        from reskit.backends.onnxruntime import OnnxRuntime
        runner = OnnxRuntime().load(Path({str(files["int8"])!r}), threads=1)
        assert runner.run({{"image": np.zeros((2, 1, 8, 8), np.uint8)}})["output"].shape == (2, 10)
        assert not {{"torch", "onnx"}} & set(sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(line.strip() for line in code.splitlines())],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_callers_at_once_get_their_own_answers(files: dict[Precision, Path], samples: np.ndarray) -> None:
    with BACKEND.load(files["int8"], threads=1) as runner:
        batches = [samples[i : i + 1 + i % 3] for i in range(40)]
        expected = [runner.run({"image": batch})["output"].copy() for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda batch: runner.run({"image": batch})["output"], batches))
    for one, other in zip(found, expected, strict=True):  # also: no later run wrote over an earlier answer
        np.testing.assert_array_equal(one, other)


def test_threads_are_those_asked_for(files: dict[Precision, Path]) -> None:
    with BACKEND.load(files["fp32"], threads=1) as runner:
        assert runner._session.get_session_options().intra_op_num_threads == 1  # type: ignore[attr-defined]


def test_inputs_that_do_not_fit_are_refused(files: dict[Precision, Path]) -> None:
    with BACKEND.load(files["fp32"], threads=1) as runner:
        runner.warm_up(2, rounds=1)
        with pytest.raises(InputError, match="expected uint8"):
            runner.run({"image": np.zeros((1, 1, 8, 9), np.uint8)})


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "cut", "text", "foreign"])
def test_files_that_are_not_whole_are_refused_in_one_line(
    files: dict[Precision, Path], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "network.onnx"
    content = files["fp32"].read_bytes()
    if damage == "folder":
        path.mkdir()
    elif damage == "foreign":
        proto = onnx.load(files["fp32"])
        del proto.metadata_props[:]
        onnx.save(proto, path)
    elif damage != "missing":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello"}[damage])
    with pytest.raises(BackendError, match=r"network\.onnx") as raised:
        BACKEND.load(path)
    assert "\n" not in str(raised.value)


def test_it_is_registered_once() -> None:
    assert isinstance(BACKEND, OnnxRuntime)
    assert BACKEND.unsupported("fp32") is None
    assert BACKEND.unsupported("bf16") == "onnxruntime has no bf16"
    BACKEND.require(export=True)
