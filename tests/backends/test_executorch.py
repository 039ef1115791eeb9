"""ExecuTorch: what is written agrees with eager at any batch, kept layers stay float, damage is seen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reskit
from reskit.backends import executorch
from reskit.backends.base import BACKENDS
from reskit.backends.sealed import seal, sealed_content
from reskit.backends.servable import Servable, describe, servable
from reskit.bundle import Bundle
from reskit.errors import BackendError, InputError, MissingExtraError

BACKEND = BACKENDS.get("executorch")
try:
    BACKEND.require(export=True)
except MissingExtraError as error:
    pytest.skip(str(error), allow_module_level=True)
PART = {"fp32": 1e-5, "int8": 0.1}
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


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, Any]]:
    """What was lowered, by precision; filled as files are written."""
    seen: dict[str, Any] = {}
    lower = executorch._lowered

    def noting(program: Any, metadata: Any) -> bytes:
        seen[metadata.precision] = program
        return lower(program, metadata)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executorch, "_lowered", noting)
        yield seen


@pytest.fixture(scope="module")
def files(
    programs: dict[str, Any],
    bundle: Bundle,
    model: Servable,
    samples: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("executorch")
    written = {}
    for precision in BACKEND.tolerance:
        written[precision] = folder / f"{precision}.pte"
        metadata = describe(bundle, "executorch", precision)
        keep = KEPT if precision == "int8" else []
        BACKEND.write(model, written[precision], metadata=metadata, samples=samples, keep=keep)
    assert sorted(folder.iterdir()) == sorted(written.values())
    return dict(written)


def eager(model: Servable, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        outputs: np.ndarray = model(torch.from_numpy(pixels)).numpy()
    return outputs


@pytest.mark.parametrize("precision", list(PART))
def test_agrees_with_eager_at_any_batch_size(
    files: dict[str, Path], model: Servable, samples: np.ndarray, precision: str
) -> None:
    with BACKEND.load(files[precision], threads=1) as runner:
        assert PART[precision] < BACKEND.tolerance[runner.metadata.precision]
        for batch in (1, 2, 5, 8, 9, 100, 1):
            expected = eager(model, samples[-batch:])
            found = runner.run({"image": samples[-batch:]})["output"]
            assert found.dtype == np.float32
            assert np.abs(found - expected).max() <= PART[precision] * np.abs(expected).max()
            assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.97


def test_int8_rounds_every_layer_but_those_kept(files: dict[str, Path], programs: dict[str, Any]) -> None:
    rounded = {}
    for node in programs["int8"].graph.nodes:
        if node.op == "call_function" and node.target in (
            torch.ops.aten.conv2d.default,
            torch.ops.aten.linear.default,
        ):
            place = list(node.meta["nn_module_stack"].values())[-1][0]
            rounded[place] = "dequantize" in str(node.args[0].target)
    assert len(rounded) == 8
    assert {name for name, int8 in rounded.items() if not int8} == {
        "model.layer2.0.conv1",
        "model.layer2.0.conv2",
        "model.linear",
    }
    assert files["int8"].stat().st_size < files["fp32"].stat().st_size


def test_what_is_kept_must_be_there(
    bundle: Bundle, model: Servable, samples: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=r"no layer of the network is named 'model.layer4'; did you mean"):
        BACKEND.write(
            model,
            tmp_path / "a.pte",
            metadata=describe(bundle, "executorch", "int8"),
            samples=samples,
            keep=["model.layer4"],
        )
    assert list(tmp_path.iterdir()) == []


def test_networks_that_cannot_be_traced_are_refused_in_one_line(tmp_path: Path, bundle: Bundle) -> None:
    class Deciding(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.float() if image.sum() > 0 else -image.float()

    with pytest.raises(BackendError, match="cannot be written for ExecuTorch") as raised:
        BACKEND.write(
            Deciding(),  # type: ignore[arg-type]
            tmp_path / "a.pte",
            metadata=describe(bundle, "executorch", "fp32"),
            samples=np.zeros(0),
        )
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_the_file_says_what_it_is_and_nothing_of_where_it_was_made(
    files: dict[str, Path], bundle: Bundle
) -> None:
    for path in files.values():
        with BACKEND.load(path) as runner:
            assert runner.metadata == describe(bundle, "executorch", runner.metadata.precision)
        for word in (str(path.parent), str(Path(reskit.__file__).parent)):
            assert word.encode() not in path.read_bytes()


def test_callers_of_two_runners_at_once_get_their_own_answers(
    files: dict[str, Path], samples: np.ndarray
) -> None:
    with BACKEND.load(files["int8"], threads=2) as one, BACKEND.load(files["fp32"]) as other:
        runners = [one, other] * 20
        batches = [samples[i : i + 1 + i % 3] for i in range(40)]
        calls = list(zip(runners, batches, strict=True))
        expected = [runner.run({"image": batch})["output"].copy() for runner, batch in calls]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda call: call[0].run({"image": call[1]})["output"], calls))
    for answer, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(answer, wanted)


def test_inputs_of_any_layout_are_read_and_left_alone(files: dict[str, Path], samples: np.ndarray) -> None:
    with BACKEND.load(files["fp32"]) as runner:
        expected = runner.run({"image": samples[:4]})["output"]
        last = np.ascontiguousarray(samples[:4].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        locked = samples[:4].copy()
        locked.flags.writeable = False
        for pixels in (last, locked, np.repeat(samples[:4], 2, axis=0)[::2]):
            np.testing.assert_array_equal(runner.run({"image": pixels})["output"], expected)
        runner.warm_up(2, rounds=1)
        with pytest.raises(InputError, match="expected uint8"):
            runner.run({"image": np.zeros((1, 1, 8, 9), np.uint8)})


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "flipped", "unsealed", "other format"])
def test_files_that_are_not_whole_are_refused_in_one_line(
    files: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    path = Path(shutil.copy(files["fp32"], tmp_path / "network.pte"))
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
        "other format": lambda: path.write_bytes(seal(b"\x1c\x00\x00\x00TFL3" + bytes(1000))),
    }
    changes[damage]()
    with pytest.raises(BackendError, match=r"network\.pte") as raised:
        BACKEND.load(path)
    assert "\n" not in str(raised.value)
