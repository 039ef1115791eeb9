"""Super-resolution: how small images are made, luminance, colour, figures against others', wrong inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import reskit
from reskit.config import Recipe
from reskit.data import ImagePreprocess
from reskit.data.augment import Augment
from reskit.data.colour import from_ycbcr, to_ycbcr
from reskit.data.config import DataConfig
from reskit.errors import ConfigError, DataError
from reskit.evaluation import assess, held_out_loader, network_answers
from reskit.nn import BicubicUpscale
from reskit.recipes import load_recipe
from reskit.tasks import Feeding
from reskit.tasks.superresolve import SuperResolve, SuperResolveSettings, shrink
from reskit.training import TrainResult
from reskit.training.feed import Feed

PUBLISHED = {2: 33.66, 3: 30.39, 4: 28.42}
"""Bicubic on Set5 in dB (Kim et al. 2016, table 3)."""


def task(channels: int = 1, size: int = 16, **settings: Any) -> SuperResolve:
    zero, one = (0.0,) * channels, (1.0,) * channels
    preprocess = ImagePreprocess(size=(size, size), channels=channels, mean=zero, std=one)
    return SuperResolve(preprocess=preprocess, settings=SuperResolveSettings(**settings))


def picture(seed: int, *shape: int) -> np.ndarray:
    low = np.random.default_rng(seed).integers(40, 200, (6, 6, *shape[2:]), np.uint8)
    return np.array(Image.fromarray(low).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("test", 3)):
        (tmp_path / split).mkdir()
        for number in range(count):
            shape = (41, 50, 3) if number == 1 else (40, 49)
            Image.fromarray(picture(number, *shape)).save(tmp_path / split / f"{number}.png")
    return tmp_path


def batches(task: SuperResolve, folder: Path, split: str, augment: Augment | None = None) -> list[Any]:
    source = task.open(DataConfig(path=str(folder)), seed=0)
    return list(task.loader(source[split], Feeding(batch_size=4, augment=augment)))


def recipe(folder: Path, *overrides: str) -> Recipe:
    return load_recipe("superresolve-vdsr", [f"data.path={folder}", "data.validation=0", *overrides])


def train(folder: Path, out: Path, *overrides: str) -> TrainResult:
    fixed = ["data.validation=0", "training.epochs=1", "training.batch_size=2", "task.arguments.patches=1"]
    return reskit.train("superresolve-vdsr", data=folder, overrides=[*fixed, *overrides], out=out)


def bicubic(channels: int, scale: int) -> torch.nn.Module:
    arguments = {"scale": scale, "depth": 2, "width": 1, "zero_init": True, "subpixel": True}
    return reskit.create_model("vdsr", in_channels=channels, **arguments)


# Small images.


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_small_images_are_those_of_pillow_on_float(scale: int) -> None:
    image = (np.random.default_rng(0).random((50, 61)) * 255).astype(np.float32)
    height, width = 50 // scale, 61 // scale
    exact = Image.fromarray(image[: height * scale, : width * scale])
    expected = np.asarray(exact.resize((width, height), Image.Resampling.BICUBIC))
    found = shrink(torch.from_numpy(image)[None], scale)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("scale", PUBLISHED)
def test_bicubic_has_the_published_figures(shared_data: Path, scale: int) -> None:
    asked = task(size=64, scale=scale)
    source = asked.open(
        DataConfig(path=str(shared_data / "restoration" / "set5")).model_copy(update={"holdout": 0}), seed=0
    )
    loader, split = held_out_loader(asked, source, batch_size=1)
    answer = network_answers(bicubic(1, scale), asked, torch.device("cpu"))
    found = assess(asked, answer, loader, split=split, source=source)
    assert len(found.examples["psnr"]) == 5
    assert found.metrics["psnr"] == pytest.approx(PUBLISHED[scale], abs=0.1)


@pytest.mark.parametrize("scale", [2, 3])
def test_patches_of_both_sizes_show_the_same(folder: Path, scale: int) -> None:
    asked = task(scale=scale, patch=10, patches=8)
    for batch in batches(asked, folder, "train", Augment(dihedral=True)):
        assert batch["image"].shape == (4, 1, 10, 10)
        assert batch["target"].shape == (4, 1, 10 * scale, 10 * scale)
        for small, large in zip(batch["image"], batch["target"], strict=True):
            again = shrink(large, scale)  # differs at the border, where the patch was cut
            torch.testing.assert_close(again[..., 2:-2, 2:-2], small[..., 2:-2, 2:-2], rtol=0, atol=0.02)


def test_the_answer_is_the_image_cut_to_a_multiple(folder: Path) -> None:
    shapes = [(b["image"].shape[1:], b["target"].shape[1:]) for b in batches(task(scale=3), folder, "test")]
    assert shapes == [((1, 13, 16), (1, 39, 48)), ((3, 13, 16), (3, 39, 48)), ((1, 13, 16), (1, 39, 48))]


# Luminance and colour.


def test_luminance_is_that_of_scikit_image() -> None:
    image = np.random.default_rng(0).random((9, 8, 3))
    found = to_ycbcr(torch.from_numpy(image).permute(2, 0, 1)[None])
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy() * 255, rgb2ycbcr(image), atol=1e-6)
    back = from_ycbcr(found)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(back, image, atol=1e-9)


@pytest.mark.parametrize("scale", [2, 4])
def test_figures_are_those_of_scikit_image_on_luminance_within_the_border(scale: int) -> None:
    random = np.random.default_rng(0)
    true = random.random((40, 44, 3)).astype(np.float32)
    made = (true + random.normal(0, 0.05, true.shape)).astype(np.float32)
    metrics = task(scale=scale).metrics()
    metrics.update(*(torch.from_numpy(image).permute(2, 0, 1)[None] for image in (made, true)))
    inner = slice(scale, -scale)
    expected = [np.clip(rgb2ycbcr(image)[inner, inner, 0] / 255, 0, 1) for image in (true, made)]
    found = metrics.compute()
    assert float(found["psnr"]) == pytest.approx(peak_signal_noise_ratio(*expected, data_range=1), abs=1e-3)
    alike = structural_similarity(
        *expected, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert float(found["ssim"]) == pytest.approx(alike, abs=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (30, 11), (40, 50)])
def test_colour_through_a_grey_network_is_colour(size: tuple[int, int]) -> None:
    """Bicubic interpolation is linear: of luminance and chroma it is that of the colours."""
    asked, network = task(scale=2), bicubic(1, 2)
    image = torch.rand(2, 3, *size) * 255
    found = asked.outputs(lambda pixels: network(pixels / 255).detach(), image)
    assert found.shape == (2, 3, size[0] * 2, size[1] * 2)
    # Where tiles meet they are blended, each continued by its own mirror image; the rest is exact.
    exact = BicubicUpscale(2)(image / 255)
    assert float((found - exact).abs().mean()) < 5e-3
    if size == (16, 16):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


def test_a_grey_network_learns_luminance(folder: Path) -> None:
    grey, colour = task(patch=8), task(channels=3, patch=8)
    item = picture(0, 30, 30, 3)
    expected = rgb2ycbcr(item / 255)[None, ..., 0]
    np.testing.assert_allclose(grey.learned(item)["target"].numpy(), expected, atol=1e-3)
    assert colour.learned(item)["target"].shape == (3, 30, 30)
    assert colour.learned(item[..., 0])["target"].shape == (3, 30, 30)
    assert torch.equal(grey.learned(item[..., 0])["target"][0], torch.from_numpy(item[..., 0]).float())


def test_pictures_grow_in_predict(folder: Path, tmp_path: Path) -> None:
    run = train(
        folder,
        tmp_path / "run",
        "task.arguments.patch=8",
        "task.arguments.scale=3",
        "preprocess.size=16",
        "model.arguments={depth: 2, width: 4}",
    )
    inputs = [picture(5, 20, 33, 3), picture(6, 9, 7), picture(7, 1, 1)]
    rows = reskit.predict(run.bundle, inputs, save=tmp_path / "saved")
    assert [(row["height"], row["width"], row["error"]) for row in rows] == [
        (60, 99, None),
        (27, 21, None),
        (3, 3, None),
    ]
    shapes = [np.asarray(Image.open(row["restored"])).shape for row in rows]
    assert shapes == [(60, 99, 3), (27, 21), (3, 3)]
    assert reskit.load(run.bundle).model.architecture["scale"] == 3
    assert "given" in (run.run / "evaluation" / "report.md").read_text() or run.files["restored"].exists()


# Wrong inputs.


def test_sixteen_bits_and_palettes_are_read_as_what_they_show(tmp_path: Path) -> None:
    plain = picture(1, 20, 24)
    Image.fromarray(plain.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    few = Image.fromarray(picture(1, 20, 24, 3)).quantize(16)
    few.save(tmp_path / "palette.png")
    assert torch.equal(task().read(tmp_path / "sixteen.png")[0], torch.from_numpy(plain.astype(np.float32)))
    found = task().read(tmp_path / "palette.png")
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), np.asarray(few.convert("RGB")))


def test_pictures_too_small_are_named(folder: Path) -> None:
    Image.fromarray(picture(0, 40, 15)).save(folder / "train" / "2.png")
    with pytest.raises(DataError, match=r"2\.png.*40x14 pixels is too small to cut patches.*16 are needed"):
        batches(task(patch=8), folder, "train", Augment())
    Image.fromarray(picture(0, 14, 40)).save(folder / "test" / "0.png")
    with pytest.raises(DataError, match=r"0\.png.*14x40 pixels is too small to be measured: 15"):
        batches(task(), folder, "test")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.arguments.scale=5", "task.arguments.scale"),
        ("task.arguments.scal=2", "did you mean 'scale'"),
        ("augment.rotate=5", "flip and dihedral only"),
    ],
)
def test_wrong_settings_end_the_run_at_once(folder: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Feed(recipe(folder, override), processes=1, say=str)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.arguments.scale=3", "model.arguments.scale is what task.arguments decides"),
        ("model={name: dncnn}", "dncnn is no network to superresolve with; those are edsr_baseline, vdsr"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(folder: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        task().build_model(recipe(folder, override))


def test_weights_of_one_scale_are_not_taken_for_another(tmp_path: Path) -> None:
    torch.save(
        reskit.create_model("edsr_baseline", scale=3, depth=2, width=8).state_dict(), tmp_path / "w.pt"
    )
    whole = reskit.create_model("vdsr", in_channels=1, scale=4)
    torch.save(whole.state_dict(), tmp_path / "v.pt")
    bundle, _ = reskit.import_bundle(
        tmp_path / "v.pt", tmp_path / "b", task={"name": "superresolve", "arguments": {"scale": 4}}, size=16
    )
    assert (bundle.model.architecture["scale"], bundle.task.config()["settings"]["scale"]) == (4, 4)
    row = bundle.predict(picture(0, 10, 12))[0]
    assert (row["height"], row["width"]) == (40, 48)
