"""PyTorch Inductor: compiled where it is loaded, kept in a folder of the user's own."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reskit
from reskit import environment
from reskit.backends import BACKENDS, Precision, Runner
from reskit.backends.servable import describe, servable
from reskit.bundle import Bundle
from reskit.errors import BackendError, MissingExtraError
from reskit.files import own_cache

BACKEND = BACKENDS.get("inductor")
RUNS: list[Precision] = [precision for precision in BACKEND.tolerance if not BACKEND.unsupported(precision)]
PART = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.1}

if not RUNS:
    pytest.skip(str(BACKEND.unsupported("fp32")), allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("RESKIT_CACHE", str(folder))
        yield folder / "reskit" / "inductor"


@pytest.fixture(scope="module")
def bundle(digits_run: Any) -> Bundle:
    return reskit.load(digits_run.bundle)


@pytest.fixture(scope="module")
def files(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    folder = tmp_path_factory.mktemp("inductor")
    samples = bundle.samples["samples"].numpy()[:32]
    written: dict[Precision, Path] = {}
    for precision in RUNS:
        written[precision] = folder / f"{precision}.safetensors"
        metadata = describe(bundle, "inductor", precision)
        BACKEND.write(servable(bundle), written[precision], metadata=metadata, samples=samples)
    return written


@pytest.fixture(scope="module")
def runners(files: dict[Precision, Path]) -> dict[Precision, Runner]:
    # A compiler that inherits inference mode makes slow programs (pytorch #114119), or none.
    with torch.inference_mode():
        loaded = {precision: BACKEND.load(path, threads=1) for precision, path in files.items()}
    loaded["fp32"].warm_up(4)
    return loaded


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")


def pictures(bundle: Bundle, batch: int) -> np.ndarray:
    samples: np.ndarray = bundle.samples["samples"].numpy()
    return samples[batch : 2 * batch].copy()


@torch.inference_mode()
def expected(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    answer: np.ndarray = bundle.model(bundle.task.inputs({"image": torch.from_numpy(images)})).numpy()
    return answer


def libraries(folder: Path) -> dict[str, bytes]:
    """Return the shared library of each program."""
    found = {}
    for path in folder.rglob("*.pt2"):
        with zipfile.ZipFile(path) as package:
            (name,) = (name for name in package.namelist() if name.endswith(".so"))
            found[str(path.relative_to(folder))] = package.read(name)
    return found


@pytest.mark.parametrize("precision", RUNS)
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_agrees_with_the_bundle(
    precision: Precision, batch: int, bundle: Bundle, runners: dict[Precision, Runner]
) -> None:
    found = runners[precision].run({"image": pictures(bundle, batch)})["output"]
    wanted = expected(bundle, pictures(bundle, batch))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= PART[precision] * np.abs(wanted).max()
    assert BACKEND.tolerance[precision] >= PART[precision]
    assert runners[precision].metadata == describe(bundle, "inductor", precision)


def test_layers_are_those_of_onednn_with_packed_weights(
    runners: dict[Precision, Runner], cache: Path
) -> None:
    found = libraries(cache)
    assert len(found) == len(RUNS) + 1  # one a file, and that of warm_up
    for library in found.values():
        assert b"_convolution_pointwise" in library or b"_qconv_pointwise" in library
    assert sum(b"_qconv_pointwise" in library for library in found.values()) == ("int8" in RUNS)


def test_threads_get_what_they_asked_for(bundle: Bundle, runners: dict[Precision, Runner]) -> None:
    batches = [pictures(bundle, batch) for batch in (1, 2, 5, 8)] * 8
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda images: runners["fp32"].run({"image": images})["output"], batches))
    for images, answer in zip(batches, found, strict=True):
        np.testing.assert_allclose(answer, expected(bundle, images), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("no_compiler")
def test_the_second_load_needs_no_compiler_and_no_torchao(
    bundle: Bundle, runners: dict[Precision, Runner], files: dict[Precision, Path], monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    images = pictures(bundle, 5)
    for precision, path in files.items():
        with BACKEND.load(path, threads=1) as again:
            again.warm_up(4 if precision == "fp32" else 1)
            assert np.array_equal(
                again.run({"image": images})["output"], runners[precision].run({"image": images})["output"]
            )


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler(
    files: dict[Precision, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reason = "there is no C\\+\\+ compiler: no-such-compiler is not found"
    assert "no C++ compiler" in str(BACKEND.unsupported("fp32"))
    monkeypatch.setenv("RESKIT_CACHE", str(tmp_path))
    with pytest.raises(BackendError, match=f"must be compiled on this machine, but {reason}"):
        BACKEND.load(files["fp32"])


@pytest.mark.usefixtures("no_compiler")
def test_damaged_programs_are_not_run(
    runners: dict[Precision, Runner],
    files: dict[Precision, Path],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("RESKIT_CACHE", str(tmp_path))
    copied = shutil.copytree(cache, tmp_path / "reskit" / "inductor", copy_function=shutil.copy)
    for program in copied.rglob("*.pt2"):
        program.write_bytes(program.read_bytes()[:1000])
    with pytest.raises(BackendError, match="must be compiled on this machine"):
        BACKEND.load(files["fp32"])


def test_folders_that_others_can_write_to(
    files: dict[Precision, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESKIT_CACHE", str(tmp_path))
    folder = tmp_path / "reskit" / "inductor"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(BackendError, match="others can write to"):
        BACKEND.load(files["fp32"])


def test_a_cache_that_cannot_be_written(
    files: dict[Precision, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="compiled programs cannot be kept"):
        BACKEND.load(files["fp32"])


def test_a_file_replaced_meanwhile(runners: dict[Precision, Runner], files: dict[Precision, Path]) -> None:
    kept = files["fp32"].read_bytes()
    files["fp32"].write_bytes(b"another")
    try:
        with pytest.raises(BackendError, match="was replaced since it was loaded"):
            runners["fp32"].warm_up(2)
    finally:
        files["fp32"].write_bytes(kept)


def test_without_torchao(
    files: dict[Precision, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "int8" not in RUNS:
        pytest.skip("no int8 here")
    monkeypatch.setenv("RESKIT_CACHE", str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert "reskit[torchao]" in str(BACKEND.unsupported("int8"))
    assert BACKEND.unsupported("fp32") is None
    with pytest.raises(MissingExtraError, match="torchao is not installed"):
        BACKEND.load(files["int8"])


def test_other_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.platform, "machine", lambda: "arm64")
    assert BACKEND.unsupported("int8") == "int8 by Inductor is made for x86"


def test_the_folder_follows_the_usual_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RESKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert own_cache("inductor") == tmp_path / "reskit" / "inductor"
    assert own_cache("inductor").stat().st_mode & 0o777 == 0o700
