"""Published weights become bundles that answer as the network did, or are refused for a reason."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import reskit
from reskit.data import IMAGENET_MEAN
from reskit.errors import ConfigError, OutputError, UnknownNameError, WeightsError
from reskit.models import create_model
from reskit.weights import Checkpoint


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = create_model("cifar_resnet8", num_classes=3)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_a_state_dict_becomes_a_bundle(weights: Path, tmp_path: Path) -> None:
    bundle, imported = reskit.import_bundle(weights, tmp_path / "b", labels=["a", "b", "c"])
    assert imported.model.architecture["name"] == "cifar_resnet8"
    assert not (imported.report.missing)
    assert not (imported.report.unexpected)
    assert (bundle.task.labels, bundle.task.preprocess.size) == (["a", "b", "c"], (32, 32))
    assert bundle.task.preprocess.mean == IMAGENET_MEAN
    assert bundle.verify() < 1e-5
    record = bundle.config.provenance["imported"]
    assert (record["format"], list(record["sha256"])) == ("safetensors", ["w.safetensors"])
    picture = np.zeros((40, 50, 3), dtype=np.uint8)
    assert next(iter(bundle.predict([picture])))["label"] in {"a", "b", "c"}


def test_a_bundle_is_imported_with_all_it_says(digits_run: Any, tmp_path: Path) -> None:
    first = reskit.load(digits_run.bundle)
    second, _ = reskit.import_bundle(digits_run.bundle, tmp_path / "b")
    assert second.task.config() == first.task.config()
    pixels = torch.zeros(1, 1, 8, 8)
    assert torch.equal(first.model(pixels), second.model(pixels))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"labels": ["a", "b"]}, ConfigError, "2 labels were given for a network of 3 classes"),
        ({"model": "cifar_resnet20"}, WeightsError, "does not fit the model"),
        ({"model": "cifar_resnet80"}, UnknownNameError, "did you mean"),
    ],
)
def test_what_does_not_fit_is_refused(
    weights: Path, tmp_path: Path, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        reskit.import_bundle(weights, tmp_path / "b", **arguments)
    assert not (tmp_path / "b").exists()


def test_a_named_network_takes_classes_and_channels_of_the_file(digits_run: Any, tmp_path: Path) -> None:
    file = reskit.export(digits_run.bundle, tmp_path / "w.safetensors", to="torch").path
    model = reskit.import_model(file, model="cifar_resnet8").model
    assert (model.architecture["num_classes"], model.architecture["in_channels"]) == (10, 1)


def test_a_mean_image_stays_and_is_turned_round_with_the_colours(weights: Path, tmp_path: Path) -> None:
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    state = load_file(weights)
    stated = {"size": (32, 32), "mean": (0.5,) * 3, "std": (1.0,) * 3, "mean_image": image}
    caffe = Checkpoint(format="caffe", source="c", state=state, preprocess=stated)
    rgb, _ = reskit.import_bundle(caffe, tmp_path / "rgb")
    again, _ = reskit.import_bundle(tmp_path / "rgb", tmp_path / "again")
    bgr, _ = reskit.import_bundle(caffe, tmp_path / "bgr", bgr=True)
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(rgb.task.normalize(pixels), pixels / 255 - image)
    assert torch.equal(again.task.normalize(pixels), rgb.task.normalize(pixels))
    torch.testing.assert_close(bgr.task.normalize(pixels), pixels / 255 - image.flip(0))


def test_features_are_no_bundle(tmp_path: Path) -> None:
    features = Checkpoint(
        format="torch",
        source="features.pth",
        state=create_model("cifar_resnet8", num_classes=0).state_dict(),
        architecture={"name": "cifar_resnet8", "num_classes": 0, "in_channels": 3},
    )
    with pytest.raises(WeightsError, match="no classes to tell apart"):
        reskit.import_bundle(features, tmp_path / "b")


def test_bgr_is_turned_round_once(weights: Path, tmp_path: Path) -> None:
    rgb, _ = reskit.import_bundle(weights, tmp_path / "rgb", statistics="imagenet")
    bgr, _ = reskit.import_bundle(weights, tmp_path / "bgr", statistics="imagenet", bgr=True)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = rgb.model(rgb.task.normalize(pixels))
        found = bgr.model(bgr.task.normalize(pixels.flip(1)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_torch_weights_go_out_and_come_back(digits_run: Any, tmp_path: Path, suffix: str) -> None:
    file = reskit.export(digits_run.bundle, tmp_path / f"w{suffix}", to="torch").path
    state = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    own = reskit.load(digits_run.bundle).model.state_dict()
    assert list(state)
    assert all(torch.equal(state[name], own[name]) for name in own)
    assert reskit.import_model(file).model.architecture["name"] == "cifar_resnet8"
    with pytest.raises(OutputError, match="is there already"):
        reskit.export(digits_run.bundle, file, to="torch")


def test_what_lies_beside_a_network_is_not_overwritten(digits_run: Any, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_text("precious")
    with pytest.raises(OutputError, match=r"m\.bin is there already"):
        reskit.export(digits_run.bundle, tmp_path / "m.xml", to="openvino")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["precious"]


@pytest.mark.skipif(sys.platform == "win32", reason="file modes are of POSIX")
def test_others_may_read_what_is_written(digits_run: Any, tmp_path: Path) -> None:
    exported = reskit.export(digits_run.bundle, tmp_path / "n.safetensors", to="torch-graph").path
    files = [exported, *(file for file in Path(digits_run.bundle).iterdir() if file.is_file())]
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o644"}


def test_keras_weights_go_out_and_come_back(digits_run: Any, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    file = reskit.export(digits_run.bundle, tmp_path / "w.h5", to="keras-h5").path
    again = reskit.import_model(file).model
    bundle = reskit.load(digits_run.bundle)
    images = bundle.task.normalize(bundle.samples["samples"])
    with torch.no_grad():
        torch.testing.assert_close(again(images), bundle.model(images), rtol=1e-4, atol=1e-4)


def test_an_unknown_format_suggests(digits_run: Any, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'keras-h5'"):
        reskit.export(digits_run.bundle, tmp_path / "w", to="keras")


# The verbs.


def test_import_and_export_verbs(
    cli: Callable[..., Any], weights: Path, digits_run: Any, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("ant\n\nbee\ncat\n", encoding="utf-8")
    ran = cli("import", weights, "--to", tmp_path / "b", "--labels", tmp_path / "names.txt", "--json")
    document = json.loads(ran.out)
    assert (ran.code, document["model"], document["report"]["missing"]) == (0, "cifar_resnet8", [])
    assert reskit.load(document["bundle"]).task.labels == ["ant", "bee", "cat"]
    ran = cli("import", weights, "--to", tmp_path / "c")
    assert "matched" in ran.out
    assert str(tmp_path / "c") in ran.out
    ran = cli("export", digits_run.bundle, "--to", "torch", "--out", tmp_path / "out.pt", "--json")
    assert json.loads(ran.out) == {
        "file": str(tmp_path / "out.pt"),
        "format": "torch",
        "precision": None,
        "differences": {},
    }
    ran = cli("import", tmp_path / "none.pth", "--to", tmp_path / "d")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: there is no weights file")
    assert ran.err.count("\n") == 1
