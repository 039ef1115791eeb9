"""LiteRT: what is written agrees with eager at any batch, in int8 too, and runs without PyTorch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reskit
from reskit.backends import litert
from reskit.backends.base import BACKENDS, Metadata
from reskit.backends.sealed import seal, sealed_content
from reskit.backends.servable import Servable, describe, servable
from reskit.bundle import Bundle
from reskit.errors import BackendError, InputError, MissingExtraError

BACKEND = BACKENDS.get("litert")
try:
    BACKEND.require(export=True)
except MissingExtraError as error:
    pytest.skip(str(error), allow_module_level=True)
PART = {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.1}
KEPT = ["model.layer2", "model.linear"]


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


@pytest.fixture(scope="module", autouse=True)
def converted(bundle: Bundle, model: Servable) -> Iterator[bytes]:
    """The network as converted, once for all tests: that is what takes time."""
    content = litert._converted(model, describe(bundle, "litert", "fp32"))
    convert = litert._converted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            litert, "_converted", lambda net, *rest: content if net is model else convert(net, *rest)
        )
        yield content


@pytest.fixture(scope="module")
def files(
    bundle: Bundle, model: Servable, samples: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("litert")
    written = {}
    for name, precision, keep in (
        ("fp32", "fp32", []),
        ("fp16", "fp16", []),
        ("int8", "int8", []),
        ("kept", "int8", KEPT),
    ):
        written[name] = folder / f"{name}.tflite"
        metadata = describe(bundle, "litert", precision)
        BACKEND.write(model, written[name], metadata=metadata, samples=samples, keep=keep)
    assert sorted(folder.iterdir()) == sorted(written.values())
    return written


def eager(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        outputs: np.ndarray = model(torch.from_numpy(pixels)).numpy()
    return outputs


def operators(path: Path) -> list[tuple[str, str, list[str]]]:
    """Return kind, output and the types of the tensors of every operator, by another reader of the format."""
    tflite = pytest.importorskip("tflite")
    graph = tflite.Model.GetRootAs(path.read_bytes(), 0)
    net = graph.Subgraphs(0)
    kinds = {n: kind for kind, n in vars(tflite.BuiltinOperator).items() if isinstance(n, int)}
    types = {n: kind for kind, n in vars(tflite.TensorType).items() if isinstance(n, int)}
    found = []
    for place in range(net.OperatorsLength()):
        operator = net.Operators(place)
        code = graph.OperatorCodes(operator.OpcodeIndex())
        kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        tensors = [net.Tensors(n) for n in (*operator.InputsAsNumpy(), *operator.OutputsAsNumpy())]
        found.append((kind, tensors[-1].Name().decode(), [types[tensor.Type()] for tensor in tensors]))
    return found


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "kept"])
def test_agrees_with_eager_at_any_batch_size(
    files: dict[str, Path], model: Servable, samples: np.ndarray, name: str
) -> None:
    with BACKEND.load(files[name], threads=1) as runner:
        part = PART[runner.metadata.precision]
        assert part < BACKEND.tolerance[runner.metadata.precision]
        for batch in (1, 2, 5, 100, 1):
            expected = eager(model, samples[-batch:])
            found = runner.run({"image": samples[-batch:]})["output"]
            assert found.dtype == np.float32
            assert np.abs(found - expected).max() <= part * np.abs(expected).max()
            assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.97


def test_files_are_as_small_as_their_precision(files: dict[str, Path]) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    assert sizes["fp16"] < 0.55 * sizes["fp32"]
    assert sizes["int8"] < 0.33 * sizes["fp32"]


def test_int8_is_integers_from_the_pixels_to_the_answer(files: dict[str, Path]) -> None:
    *inner, last = operators(files["int8"])
    assert last[0] == "DEQUANTIZE"
    assert {kind for _, _, types in inner for kind in types} <= {"UINT8", "INT8", "INT32"}
    sums = [types for kind, _, types in inner if kind == "ADD"]
    assert sums == [["INT8"] * 3] * 4  # three residual sums, and the mean of the pixels


def test_what_is_kept_stays_float(files: dict[str, Path]) -> None:
    layers = {
        name: types[1]
        for kind, name, types in operators(files["kept"])
        if kind in ("CONV_2D", "FULLY_CONNECTED")
    }
    assert {name for name, kind in layers.items() if kind == "FLOAT32"} == {
        "model.layer2.0.conv1",
        "model.layer2.0.conv2",
        "model.linear",
    }
    assert len(layers) == 8


def test_what_is_kept_must_be_a_layer(
    bundle: Bundle, model: Servable, samples: np.ndarray, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"metadata": describe(bundle, "litert", "int8"), "samples": samples}
    for name in ("model.layer4", "model.relu", ""):
        with pytest.raises(
            BackendError, match=f"no layer of the network is named '{name}'; did you mean|known"
        ):
            BACKEND.write(model, tmp_path / "a.tflite", keep=[name], **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_file_says_what_it_is_and_nothing_of_where_it_was_made(
    files: dict[str, Path], bundle: Bundle
) -> None:
    for path in files.values():
        with BACKEND.load(path) as runner:
            assert runner.metadata == describe(bundle, "litert", runner.metadata.precision)
        for word in (str(path.parent), str(Path(reskit.__file__).parent), "servable", "__main__"):
            assert word.encode() not in path.read_bytes()


def test_other_programs_find_names_and_an_open_batch(files: dict[str, Path]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    for path in files.values():
        interpreter = Interpreter(str(path), num_threads=1)
        assert interpreter.get_signature_list() == {
            "serving_default": {"inputs": ["image"], "outputs": ["output"]}
        }
        (entry,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
        assert list(entry["shape_signature"]) == [-1, 1, 8, 8]
        assert entry["dtype"] == np.uint8
        assert list(answer["shape_signature"]) == [-1, 10]


def test_colour_and_shortcuts_that_slice_take_any_batch(tmp_path: Path, bundle: Bundle) -> None:
    """What the converter makes of `x[:, :, ::2, ::2]` goes on with the first picture alone."""

    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            x = self.conv(image / 255)[:, :, ::2, ::2]
            return x.flatten(1)[:, :5]

    torch.manual_seed(0)
    network = Sliced().eval().requires_grad_(False)
    values = describe(bundle, "litert", "fp32").to_json()
    values = values.replace("[null, 1, 8, 8]", "[null, 3, 6, 6]").replace("[null, 10]", "[null, 5]")
    metadata = Metadata.from_json(values, tmp_path)
    path = tmp_path / "a.tflite"
    BACKEND.write(network, path, metadata=metadata, samples=np.zeros((0, 3, 6, 6), np.uint8))
    with BACKEND.load(path, threads=1) as runner:
        for batch in (1, 2, 5):
            pixels = np.random.default_rng(batch).integers(0, 256, (batch, 3, 6, 6), np.uint8)
            np.testing.assert_allclose(
                runner.run({"image": pixels})["output"], eager(network, pixels), atol=1e-5
            )


def test_pooling_that_pads_with_minus_infinity_can_be_int8(tmp_path: Path, bundle: Bundle) -> None:
    """Its range would be infinite; without an activation before it, zeros would not do as padding."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, padding=1)
            self.pool = nn.MaxPool2d(3, 2, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            return self.pool(self.conv(image / 255) - 2).mean((2, 3))

    torch.manual_seed(0)
    network = Pooled().eval().requires_grad_(False)
    values = describe(bundle, "litert", "int8").to_json()
    values = values.replace("[null, 1, 8, 8]", "[null, 3, 6, 6]").replace("[null, 10]", "[null, 5]")
    path = tmp_path / "a.tflite"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 3, 6, 6), np.uint8)
    BACKEND.write(network, path, metadata=Metadata.from_json(values, tmp_path), samples=pixels)
    with BACKEND.load(path, threads=1) as runner:
        found, expected = runner.run({"image": pixels})["output"], eager(network, pixels)
    assert expected.max() < -0.5
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_operators_that_litert_lacks_are_refused_in_one_line(tmp_path: Path, bundle: Bundle) -> None:
    class Spectrum(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.linalg.svdvals(image[:, 0].float())

    with pytest.raises(BackendError, match="cannot be written for LiteRT") as raised:
        BACKEND.write(
            Spectrum(),
            tmp_path / "a.tflite",
            metadata=describe(bundle, "litert", "fp32"),
            samples=np.zeros(0),
        )
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_running_needs_no_torch(files: dict[str, Path]) -> None:
    code = f"""
        import sys
        from pathlib import Path
        import numpy as np
        from reskit.backends.litert import LiteRT
        runner = LiteRT().load(Path({str(files["int8"])!r}), threads=1)
        assert runner.run({{"image": np.zeros((2, 1, 8, 8), np.uint8)}})["output"].shape == (2, 10)
        assert not {{"torch", "jax", "tensorflow", "litert_torch", "ai_edge_quantizer"}} & set(sys.modules)
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_callers_at_once_get_their_own_answers(files: dict[str, Path], samples: np.ndarray) -> None:
    with BACKEND.load(files["int8"], threads=2) as runner:
        batches = [samples[i : i + 1 + i % 3] for i in range(40)]
        expected = [runner.run({"image": batch})["output"].copy() for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda batch: runner.run({"image": batch})["output"], batches))
    for one, other in zip(found, expected, strict=True):  # also: no later run wrote over an earlier answer
        np.testing.assert_array_equal(one, other)


def test_inputs_of_any_layout_are_read_and_left_alone(files: dict[str, Path], samples: np.ndarray) -> None:
    with BACKEND.load(files["fp32"], threads=1) as runner:
        expected = runner.run({"image": samples[:4]})["output"]
        last = np.ascontiguousarray(samples[:4].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        locked = samples[:4].copy()
        locked.flags.writeable = False
        for pixels in (last, locked, np.repeat(samples[:4], 2, axis=0)[::2]):
            np.testing.assert_array_equal(runner.run({"image": pixels})["output"], expected)
        runner.warm_up(2, rounds=1)
        with pytest.raises(InputError, match="expected uint8"):
            runner.run({"image": np.zeros((1, 1, 8, 9), np.uint8)})


def of_another_version(content: bytes) -> bytes:
    """Return a file that asks for operators no runtime has yet."""
    from ai_edge_litert.tools import flatbuffer_utils

    graph = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph.operatorCodes[0].version = 99
    return bytes(flatbuffer_utils.convert_object_to_bytearray(graph))


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut", "text", "flipped", "unsealed", "foreign", "newer"]
)
def test_files_that_are_not_whole_are_refused_in_one_line(
    files: dict[str, Path], tmp_path: Path, damage: str, converted: bytes
) -> None:
    path = Path(shutil.copy(files["fp32"], tmp_path / "network.tflite"))
    content = sealed_content(path)
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    changes: dict[str, Any] = {
        "missing": lambda: path.unlink(),
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(content[:1000]),
        "text": lambda: path.write_text("hello"),
        "flipped": lambda: path.write_bytes(flipped),
        "unsealed": lambda: path.write_bytes(content),
        "foreign": lambda: path.write_bytes(seal(converted)),
        "newer": lambda: path.write_bytes(seal(of_another_version(content))),
    }
    changes[damage]()
    with pytest.raises(BackendError, match=r"network\.tflite") as raised:
        BACKEND.load(path)
    assert "\n" not in str(raised.value)
