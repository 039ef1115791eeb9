"""Denoising: noise, patches, colour, figures against scikit-image, wrong inputs, published weights."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import reskit
from reskit.config import Recipe
from reskit.data import ImagePreprocess
from reskit.data.augment import Augment
from reskit.data.config import DataConfig
from reskit.errors import ConfigError, DataError
from reskit.recipes import load_recipe
from reskit.tasks import Feeding, Task
from reskit.tasks.denoise import Denoise, DenoiseSettings
from reskit.training import TrainResult
from reskit.training.feed import Feed


def task(channels: int = 1, size: int = 32, **settings: Any) -> Denoise:
    zero, one = (0.0,) * channels, (1.0,) * channels
    preprocess = ImagePreprocess(size=(size, size), channels=channels, mean=zero, std=one)
    return Denoise(preprocess=preprocess, settings=DenoiseSettings(**settings))


def picture(seed: int, *shape: int) -> np.ndarray:
    low = np.random.default_rng(seed).integers(40, 200, (4, 4, *shape[2:]), np.uint8)
    return np.array(Image.fromarray(low).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("test", 3)):
        (tmp_path / split).mkdir()
        for number in range(count):
            Image.fromarray(picture(number, 40, 36)).save(tmp_path / split / f"{number}.png")
    return tmp_path


def batches(task: Task, folder: Path, split: str, augment: Augment | None = None) -> list[Any]:
    source = task.open(DataConfig(path=str(folder)), seed=0)
    return list(task.loader(source[split], Feeding(batch_size=4, augment=augment)))


def recipe(folder: Path, *overrides: str) -> Recipe:
    return load_recipe("denoise-dilated", [f"data.path={folder}", "data.validation=0", *overrides])


def train(folder: Path, out: Path, *overrides: str) -> TrainResult:
    fixed = ["data.validation=0", "training.epochs=1", "training.batch_size=2", "task.arguments.patches=1"]
    return reskit.train("denoise-dilated", data=folder, overrides=[*fixed, *overrides], out=out)


# Noise and patches.


def test_noise_of_an_evaluation_is_white_of_sigma_and_the_same_every_time(folder: Path) -> None:
    Image.fromarray(np.full((400, 300), 250, np.uint8)).save(folder / "test" / "0.png")
    first, again = batches(task(sigma=25), folder, "test"), batches(task(sigma=25), folder, "test")
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["image"], other["image"])
    noise = first[0]["image"] - first[0]["target"]
    assert abs(float(noise.std()) - 25) < 0.3
    assert abs(float(noise.mean())) < 0.3
    assert float(first[0]["image"].max()) > 300  # it is not clipped
    assert abs(float((noise[..., 1:] * noise[..., :-1]).mean())) < 5
    same = batches(task(sigma=50), folder, "test")[1]
    torch.testing.assert_close(
        same["image"] - same["target"], 2 * (first[1]["image"] - first[1]["target"]), rtol=0, atol=1e-3
    )


def test_rows_have_noise_of_their_own(folder: Path) -> None:
    rows = batches(task(), folder, "test")
    assert not torch.equal(rows[0]["image"] - rows[0]["target"], rows[1]["image"] - rows[1]["target"])


def test_patches_are_clean_parts_of_the_pictures(folder: Path) -> None:
    found = batches(task(patch=16, patches=4), folder, "train", Augment())
    assert [batch["image"].shape for batch in found] == [(4, 1, 16, 16)] * 3
    for batch in found:
        for patch, row in zip(batch["target"], batch["index"].tolist(), strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(picture(row, 40, 36), (16, 16))
            assert (windows == patch[0].numpy()).all((2, 3)).any()


def test_training_noise_is_fixed_or_drawn_for_each_patch() -> None:
    clean = torch.full((64, 1, 32, 32), 0.5)
    torch.manual_seed(0)
    fixed = (task(sigma=25).mix(clean, clean)[0] - clean) * 255
    assert abs(float(fixed.std()) - 25) < 0.5
    blind = (task(sigma_from=5, sigma_to=55).mix(clean, clean)[0] - clean) * 255
    spread = blind.flatten(1).std(1)
    assert 4 < float(spread.min()) < 12
    assert 48 < float(spread.max()) < 58
    assert abs(float(spread.mean()) - 30) < 6


# Figures.


def test_figures_are_those_of_scikit_image() -> None:
    random = np.random.default_rng(0)
    true = random.random((3, 1, 24, 30)).astype(np.float32)
    made = true + random.normal(0, 0.1, true.shape).astype(np.float32)
    metrics = task().metrics()
    for pair in zip(made, true, strict=True):
        metrics.update(*(torch.from_numpy(image)[None] for image in pair))
    clipped = made.clip(0, 1)
    decibels = [peak_signal_noise_ratio(t, m, data_range=1) for t, m in zip(true, clipped, strict=True)]
    alike = [
        structural_similarity(
            t[0], m[0], data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for t, m in zip(true, clipped, strict=True)
    ]
    found = metrics.compute()
    assert float(found["psnr"]) == pytest.approx(np.mean(decibels), abs=1e-4)
    assert float(found["ssim"]) == pytest.approx(np.mean(alike), abs=1e-4)
    rows = task().examples(torch.from_numpy(made), torch.from_numpy(true))
    np.testing.assert_allclose(rows["psnr"], decibels, atol=1e-4)


def test_a_perfect_answer_has_a_finite_figure() -> None:
    image = torch.rand(1, 1, 16, 16)
    assert float(task().examples(image, image)["psnr"]) == 100


# Colour and size.


def test_an_identity_answers_any_size_with_itself() -> None:
    for size in ((32, 32), (20, 70), (33, 65), (9, 5), (1, 1)):
        image = torch.rand(2, 1, *size) * 255
        found = task().outputs(lambda pixels: pixels / 255, image)
        torch.testing.assert_close(found, image / 255)


def test_a_grey_network_answers_colour_a_channel_at_a_time() -> None:
    image = torch.rand(2, 3, 40, 20) * 255

    def network(pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape[1] == 1
        return 1 - pixels / 255

    torch.testing.assert_close(task().outputs(network, image), 1 - image / 255)


def test_a_colour_picture_comes_back_in_colour(folder: Path, tmp_path: Path) -> None:
    run = train(
        folder,
        tmp_path / "run",
        "task.arguments.patch=16",
        "preprocess.size=32",
        "model.arguments={dilations: [1, 1]}",
    )
    bundle = reskit.load(run.bundle)
    assert bundle.task.preprocess.channels == 1
    coloured = picture(5, 50, 44, 3)
    rows = reskit.predict(bundle, [coloured, picture(6, 30, 20)], save=tmp_path / "saved")
    assert [(row["height"], row["width"]) for row in rows] == [(50, 44), (30, 20)]
    colour, grey = (np.asarray(Image.open(row["restored"])) for row in rows)
    assert (colour.shape, grey.shape) == ((50, 44, 3), (30, 20))
    first = reskit.predict(bundle, [coloured[..., 0]], save=tmp_path / "saved")[0]
    np.testing.assert_array_equal(np.asarray(Image.open(first["restored"])), colour[..., 0])


def test_the_recipe_says_the_channels(folder: Path) -> None:
    small = "task.arguments.patch=16"
    assert Feed(recipe(folder, small), processes=1, say=str).task.preprocess.channels == 1
    wide = Feed(recipe(folder, small, "task.arguments.channels=3"), processes=1, say=str)
    assert next(iter(wide.loaders["train"]))["image"].shape[1] == 3


# Wrong inputs.


def test_sixteen_bits_palettes_and_alpha_are_read_as_what_they_show(tmp_path: Path) -> None:
    plain = picture(1, 20, 24)
    Image.fromarray(plain.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(plain).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(plain).convert("LA").save(tmp_path / "alpha.png")
    for name in ("sixteen", "palette", "alpha"):
        found = task().read(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(found.numpy(), plain[None].astype(np.float32))
        assert task(channels=3).read(tmp_path / f"{name}.png").shape == (3, 20, 24)


def test_a_picture_smaller_than_the_patch_is_named_before_training(folder: Path) -> None:
    Image.fromarray(picture(0, 12, 40)).save(folder / "train" / "1.png")
    with pytest.raises(DataError, match=r"1\.png.*12x40 pixels is too small.*task\.arguments\.patch"):
        Feed(recipe(folder, "task.arguments.patch=16"), processes=1, say=str)
    for loading in ("memory", "stream"):
        feed = Feed(
            recipe(folder, "task.arguments.patch=16", "data.on_corrupt=skip", f"data.loading={loading}"),
            processes=1,
            say=str,
        )
        assert feed.info.corrupt == ["train/1.png"]
        assert {int(row) for batch in feed.loaders["train"] for row in batch["index"]} == {0, 2}


def test_a_picture_too_small_to_be_measured_is_named(folder: Path) -> None:
    Image.fromarray(picture(0, 10, 40)).save(folder / "test" / "2.png")
    with pytest.raises(DataError, match=r"2\.png.*10x40 pixels is too small to be measured: 11"):
        batches(task(), folder, "test")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.arguments.sigm=3", "did you mean 'sigma'"),
        ("task.arguments.sigma=0", "task.arguments.sigma"),
        ("task.arguments.sigma_from=5", "go together"),
        ("task.arguments={sigma_from: 9, sigma_to: 5}", "is above sigma_to"),
        ("task.arguments.channels=2", "task.arguments.channels"),
        ("augment.crop_padding=4", "flip and dihedral only"),
        ("data.path=nowhere", "no such folder"),
    ],
)
def test_wrong_settings_end_the_run_at_once(folder: Path, override: str, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        Feed(recipe(folder, override), processes=1, say=str)


def test_a_network_for_something_else_is_refused(folder: Path) -> None:
    for name in ("cifar_resnet8", "vdsr"):
        with pytest.raises(ConfigError, match=f"{name} is no network to denoise with; those are .*dncnn"):
            task().build_model(recipe(folder, f"model.name={name}", "model.arguments={}"))


# Published weights.


def test_weights_become_a_bundle_that_knows_its_task(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = reskit.create_model("dncnn", in_channels=1)
    torch.save({f"dncnn.{n[16:]}": v for n, v in model.state_dict().items()}, tmp_path / "net.pth")
    bundle, imported = reskit.import_bundle(tmp_path / "net.pth", tmp_path / "b", size=16)
    assert (bundle.task.name, bundle.task.labels) == ("denoise", [])
    assert bundle.model.architecture == {"name": "dncnn", "in_channels": 1}
    assert not imported.report.missing
    other, _ = reskit.import_bundle(
        tmp_path / "net.pth",
        tmp_path / "c",
        size=16,
        task={"name": "denoise", "arguments": {"sigma": 15}},
    )
    assert isinstance(other.task, Denoise)
    assert other.task.settings.sigma == 15
    again, _ = reskit.import_bundle(tmp_path / "c", tmp_path / "d")  # a bundle says what it answers
    assert again.task.config() == other.task.config()
    with pytest.raises(ConfigError, match="did you mean 'sigma'"):
        reskit.import_bundle(
            tmp_path / "net.pth", tmp_path / "e", task={"name": "denoise", "arguments": {"sigm": 15}}
        )


def test_other_data_are_measured_whole_and_a_copy_as_it_was_split(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "one").mkdir(exist_ok=True)
        Image.fromarray(picture(number, 40, 36)).save(tmp_path / "one" / f"{number}.png")
    run = train(
        tmp_path / "one",
        tmp_path / "run",
        "task.arguments.patch=16",
        "preprocess.size=32",
        "model.arguments={dilations: [1, 1]}",
    )
    (tmp_path / "copy").mkdir()
    (tmp_path / "other").mkdir()
    for number in range(5):
        file = f"{number}.png"
        (tmp_path / "copy" / file).write_bytes((tmp_path / "one" / file).read_bytes())
        Image.fromarray(picture(10 + number, 40, 36)).save(tmp_path / "other" / file)
    copied = reskit.evaluate(run.bundle, tmp_path / "copy")
    assert copied.metrics == pytest.approx(run.metrics, abs=1e-6)
    assert len(copied.examples["index"]) == 1
    assert len(reskit.evaluate(run.bundle, tmp_path / "other").examples["index"]) == 5


def test_published_weights_restore_as_published(shared_data: Path, tmp_path: Path) -> None:
    """Zhang et al. 2017, table III: House at sigma 25 has 33.06 dB; the rest is the noise drawn."""
    bundle, _ = reskit.import_bundle(shared_data / "weights" / "dncnn-s25" / "net.pth", tmp_path / "b")
    (tmp_path / "house").mkdir()
    house = shared_data / "restoration" / "set12" / "02.png"
    (tmp_path / "house" / "02.png").write_bytes(house.read_bytes())
    assert reskit.evaluate(bundle, tmp_path / "house").metrics["psnr"] == pytest.approx(33.06, abs=0.15)


def test_figures_of_a_run_in_bfloat16_are_reckoned_in_full(folder: Path, tmp_path: Path) -> None:
    small = ("task.arguments.patch=16", "preprocess.size=32", "model.arguments={dilations: [1, 1]}")
    run = train(folder, tmp_path / "run", *small, "runtime.precision=bf16", "runtime.layout=nchw")
    with (run.run / "log.csv").open() as file:
        row = next(csv.DictReader(file))
    for name, value in run.metrics.items():
        assert float(row[f"test_{name}"]) == pytest.approx(value, rel=0.01)
