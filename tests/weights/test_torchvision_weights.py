"""torchvision's published weights, with torch's cache filled here: no network."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models import ResNet18_Weights, ResNet50_Weights, get_model_weights, get_weight

from reskit.data import ImagePreprocess
from reskit.errors import WeightsError
from reskit.files import sha256
from reskit.models import create_model, list_models
from reskit.weights import read_checkpoint
from reskit.weights import torchvision as reader


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def theirs(checkpoints: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    torch.save(model.state_dict(), checkpoints / Path(ResNet18_Weights.DEFAULT.url).name)
    return model.eval()


@pytest.mark.parametrize(
    "weights",
    [
        "torchvision:ResNet18_Weights.IMAGENET1K_V1",
        "torchvision:ResNet18_Weights.DEFAULT",
        ResNet18_Weights.DEFAULT,
    ],
)
def test_published_weights_by_name_or_member(
    theirs: torch.nn.Module, weights: str | ResNet18_Weights
) -> None:
    ours = create_model("resnet18", weights=weights).eval()
    x = torch.randn(2, 3, 33, 33)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


def test_what_torchvision_says(checkpoints: Path, theirs: torch.nn.Module) -> None:
    found = read_checkpoint(ResNet18_Weights.DEFAULT)
    file = checkpoints / "resnet18-f37072fd.pth"
    assert found.format == "torchvision"
    assert found.source == "torchvision:ResNet18_Weights.IMAGENET1K_V1"
    assert found.architecture == {"name": "resnet18", "num_classes": 1000}
    assert found.labels is not None
    assert (found.labels[0], len(found.labels)) == ("tench", 1000)
    assert found.provenance == {
        "weights": "ResNet18_Weights.IMAGENET1K_V1",
        "url": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
        "sha256": {file.name: sha256(file)},
    }
    assert "does not begin f37072fd" in found.notes[0]  # random weights under a published name


@pytest.mark.parametrize("member", [ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2])
def test_images_are_prepared_as_torchvision_does(member: ResNet50_Weights) -> None:
    preprocess = ImagePreprocess(**reader._preprocess(member))
    pixels = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    # Sides of which the longer needs no rounding: there torchvision truncates.
    pixels = np.asarray(Image.fromarray(pixels).resize((400, 500), Image.Resampling.BICUBIC))
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    ours = preprocess.normalize()(preprocess.read(image)[None])[0]
    theirs = member.transforms()(image)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)


def test_shared_names_are_ours_and_theirs() -> None:
    assert set(list_models()) >= reader._SHARED_NAMES
    assert set(torchvision.models.list_models()) >= reader._SHARED_NAMES


def test_every_published_set_is_found() -> None:
    for name in reader._SHARED_NAMES:
        for member in get_model_weights(name):
            found, weights = reader._find(f"torchvision:{member}")
            assert (found, weights) == (name, get_weight(str(member)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:ResNet51_Weights.DEFAULT", "no weights .*did you mean .*'ResNet50_Weights'"),
        ("torchvision:ResNet50_Weights.IMAGENET1K_V3", "did you mean 'IMAGENET1K_V[12]'"),
        ("torchvision:ResNet50_Weights", "no 'member given'; known: DEFAULT"),
        ("torchvision:resnet50", "no weights 'resnet50'"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(source: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(source)


@pytest.mark.parametrize(
    "failure", [URLError("no network"), RuntimeError('invalid hash value (expected "f37072fd", got "00")')]
)
def test_no_network_is_one_line(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: Exception
) -> None:
    def refuse(url: str, path: str, hash_prefix: str | None, progress: bool) -> None:
        assert hash_prefix == "f37072fd"
        raise failure

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(
        WeightsError, match=r"is not in the cache and cannot be downloaded.*fetch https://"
    ) as caught:
        read_checkpoint("torchvision:ResNet18_Weights.DEFAULT")
    assert str(checkpoints / "resnet18-f37072fd.pth") in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_download_is_read(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(url: str, path: str, hash_prefix: str | None, progress: bool) -> None:
        torch.save({"a": torch.ones(2)}, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert read_checkpoint("torchvision:ResNet18_Weights.DEFAULT").state["a"].tolist() == [1, 1]
    assert capsys.readouterr().out == ""


def test_a_damaged_cache_is_said(checkpoints: Path) -> None:
    (checkpoints / "resnet18-f37072fd.pth").write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="not a whole PyTorch weights file"):
        read_checkpoint(ResNet18_Weights.DEFAULT)


def test_a_network_without_twin_is_read_all_the_same(checkpoints: Path) -> None:
    member = get_model_weights("squeezenet1_1").DEFAULT  # type: ignore[attr-defined]
    torch.save({"a": torch.ones(1)}, checkpoints / Path(member.url).name)
    found = read_checkpoint(member)
    assert found.architecture is None
    assert any("'squeezenet1_1' has no twin" in note for note in found.notes)
