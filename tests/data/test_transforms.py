from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import encoded, picture
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from reskit.data import DataInfo, ImagePreprocess, Normalize, measure_mean_std
from reskit.errors import DataError

GREY = {"channels": 1, "mean": (0.5,), "std": (0.5,)}


def _info(size: tuple[int, int], largest: tuple[int, int] | None = None, channels: int = 3) -> DataInfo:
    sizes = {"min": size, "median": size, "max": largest or size}
    return DataInfo.model_validate(
        {
            "kind": "folder",
            "title": "image folder",
            "location": "x",
            "columns": {},
            "classes": ["a", "b"],
            "splits": {},
            "held_out": "test",
            "image_sizes": sizes,
            "channels": channels,
            "corrupt": [],
            "fingerprint": "",
        }
    )


def test_every_holder_of_the_same_image_reads_the_same(tmp_path: Path) -> None:
    image = picture(1, 20, 30)
    image.save(tmp_path / "x.png")
    array = np.asarray(image)
    preprocess = ImagePreprocess(size=(8, 12))
    holders = [
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        encoded(image),
        {"bytes": encoded(image), "path": None},
        {"bytes": None, "path": str(tmp_path / "x.png")},
        image,
        array,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
    ]
    results = [preprocess.read(holder) for holder in holders]
    assert results[0].shape == (3, 8, 12)
    assert results[0].dtype == torch.uint8
    assert all(torch.equal(result, results[0]) for result in results)


def test_squash_is_an_antialiased_resize() -> None:
    image = picture(1, 40, 60)
    expected = Image.fromarray(np.asarray(image)).resize((16, 12), Image.Resampling.BILINEAR)
    got = ImagePreprocess(size=(12, 16)).read(image).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - np.asarray(expected).astype(int)).max() <= 1
    expected = image.resize((16, 12), Image.Resampling.BICUBIC)
    got = (
        ImagePreprocess(size=(12, 16), interpolation="bicubic")
        .read(image)
        .permute(1, 2, 0)
        .numpy()
        .astype(int)
    )
    assert np.abs(got - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (100, 500)])
def test_crop_is_imagenets_resize_256_crop_224(height: int, width: int) -> None:
    image = tv.pil_to_tensor(picture(2, height, width))
    whole = tv.resize(image, [256], interpolation=InterpolationMode.BILINEAR, antialias=True)
    expected = tv.center_crop(whole, [224, 224])
    got = ImagePreprocess(size=(224, 224), resize="crop", crop_fraction=0.875).read(image)
    # The long side may round to another pixel, which shifts the resampling a little.
    assert (got.float() - expected.float()).abs().mean() < 1.0
    assert got.shape == (3, 224, 224)


def test_crop_covers_sizes_that_are_not_square() -> None:
    image = torch.zeros(3, 50, 40, dtype=torch.uint8)
    assert ImagePreprocess(size=(10, 30), resize="crop").read(image).shape == (3, 10, 30)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = picture(3, 6, 9)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn clockwise to see it
    image.save(tmp_path / "x.png", exif=exif)
    got = ImagePreprocess(size=(9, 6)).read(tmp_path / "x.png").permute(1, 2, 0).numpy()
    assert (got == np.rot90(np.asarray(image), k=-1)).all()


def test_palette_becomes_rgb() -> None:
    flat = Image.fromarray(np.repeat(np.array([[[255, 0, 0]], [[0, 0, 255]]], dtype=np.uint8), 2, axis=1))
    got = ImagePreprocess(size=(2, 2)).read(encoded(flat.quantize(2)))
    assert got[:, 0, 0].tolist() == [255, 0, 0]
    assert got[:, 1, 1].tolist() == [0, 0, 255]


def test_transparency_goes_onto_black() -> None:
    pixels = np.full((2, 2, 4), (200, 100, 50, 255), dtype=np.uint8)
    pixels[0, 0, 3] = 0
    pixels[1, 1, 3] = 128
    got = ImagePreprocess(size=(2, 2)).read(encoded(Image.fromarray(pixels)))
    assert got[:, 0, 0].tolist() == [0, 0, 0]
    assert got[:, 0, 1].tolist() == [200, 100, 50]
    assert np.abs(got[:, 1, 1].numpy().astype(int) - [100, 50, 25]).max() <= 1
    four = ImagePreprocess(size=(2, 2), channels=4, mean=(0.5,) * 4, std=(0.5,) * 4)
    assert (four.read(encoded(Image.fromarray(pixels))).permute(1, 2, 0).numpy() == pixels).all()


def test_grey_with_alpha() -> None:
    pixels = np.array([[[80, 255], [80, 0]]], dtype=np.uint8)
    got = ImagePreprocess(size=(1, 2), **GREY).read(encoded(Image.fromarray(pixels, mode=None)))
    assert got.tolist() == [[[80, 0]]]


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png")
    Image.fromarray(levels).save(tmp_path / "x.tif")
    for item in (tmp_path / "x.png", tmp_path / "x.tif", levels):
        assert ImagePreprocess(size=(1, 4), **GREY).read(item).tolist() == [[[0, 1, 128, 255]]]


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0)).convert("CMYK")
    got = ImagePreprocess(size=(8, 8)).read(encoded(red, "JPEG"))
    assert got[0].min() > 240
    assert got[1:].max() < 15


def test_channels_are_converted_both_ways() -> None:
    colour = picture(4)
    grey = np.asarray(colour.convert("L"))
    assert (ImagePreprocess(size=(12, 10), **GREY).read(colour)[0].numpy() == grey).all()
    assert (ImagePreprocess(size=(12, 10), **GREY).read(np.asarray(colour))[0].numpy() == grey).all()
    assert (ImagePreprocess(size=(12, 10)).read(grey).numpy() == grey).all()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (None, "cannot read an image from NoneType"),
        (3.5, "float"),
        ("no/such/file.png", "no/such/file.png: no such file"),
        (b"", "cannot read image"),
        (b"garbage", "not an image"),
        (np.zeros((4, 4)), "float64"),
        (np.zeros((4,), np.uint8), r"shape \(4,\)"),
        (torch.zeros(3, 4, 4), "float32"),
        (torch.zeros(5, 4, 4, dtype=torch.uint8), "expected an image of 3 channels, got 5"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), "empty"),
        (Image.new("F", (3, 3)), "floating-point"),
    ],
)
def test_what_is_no_image_is_said(item: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImagePreprocess(size=(4, 4)).read(item)


def test_truncated_files_are_refused() -> None:
    for kind in ("JPEG", "PNG"):
        whole = encoded(picture(5, 64, 64), kind)
        for keep in (len(whole) // 3, len(whole) * 2 // 3):
            with pytest.raises(DataError, match="cannot read image"):
                ImagePreprocess(size=(8, 8)).read(whole[:keep])


def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("L", (40, 40)))
    for limit in (1000, 100):  # Pillow warns at the first, raises at the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with pytest.raises(DataError, match="pixels"):
                ImagePreprocess(size=(8, 8)).read(content)


def test_settings_round_trip_and_are_strict() -> None:
    preprocess = ImagePreprocess(size=(8, 9), channels=1, resize="crop", mean=(0.1,), std=(0.2,))
    assert ImagePreprocess.model_validate_json(preprocess.model_dump_json()) == preprocess
    for wrong in (
        {"size": (0, 4)},
        {"size": (4, 4), "channels": 1},
        {"size": (4, 4), "std": (0, 1, 1)},
        {"sise": 4},
    ):
        with pytest.raises(ValidationError):
            ImagePreprocess(**wrong)
    changed = preprocess.with_statistics([0.3], [0.4])
    assert (changed.mean, changed.std, changed.size) == ((0.3,), (0.4,), (8, 9))
    with pytest.raises(ValidationError):
        preprocess.with_statistics([0.3, 0.3], [0.4])


def test_choice_from_the_data() -> None:
    small = ImagePreprocess.from_info(_info((32, 32)))
    assert (small.size, small.resize, small.mean[0]) == ((32, 32), "squash", 0.485)
    grey = ImagePreprocess.from_info(_info((112, 92), channels=1))
    assert (grey.size, grey.channels, grey.mean) == ((112, 92), 1, (0.5,))
    photos = ImagePreprocess.from_info(_info((300, 400), (500, 500)))
    assert (photos.size, photos.resize, photos.crop_fraction) == ((224, 224), "crop", 0.875)
    mixed = ImagePreprocess.from_info(_info((40, 60), (90, 90)))
    assert (mixed.size, mixed.resize) == ((40, 40), "crop")
    assert ImagePreprocess.from_info(_info((8, 8)), 32).size == (32, 32)
    assert ImagePreprocess.from_info(_info((300, 300)), (64, 48)).size == (64, 48)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalize_agrees_with_torchvision(dtype: torch.dtype, layout: torch.memory_format) -> None:
    images = torch.randint(0, 256, (5, 3, 7, 6), dtype=torch.uint8).contiguous(memory_format=layout)
    preprocess = ImagePreprocess(size=(7, 6))
    expected = tv.normalize(images.float() / 255, list(preprocess.mean), list(preprocess.std))
    got = preprocess.normalize()(images.to(dtype))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert got.is_contiguous(memory_format=layout)
    assert got.dtype == torch.float32


def test_normalize_refuses_other_shapes_and_types() -> None:
    normalize = ImagePreprocess(size=(7, 6)).normalize()
    for wrong in (
        torch.zeros(3, 7, 6),
        torch.zeros(2, 1, 7, 6),
        torch.zeros(2, 3, 7, 6, dtype=torch.int64),
        None,
    ):
        with pytest.raises(DataError, match="expected"):
            normalize(wrong)
    assert not normalize.state_dict()


def test_normalize_exports_with_a_dynamic_batch() -> None:
    normalize = Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    exported = torch.export.export(normalize, (images,), dynamic_shapes=({0: torch.export.Dim("n")},))
    more = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(exported.module()(more), normalize(more))


def test_mean_and_std_agree_with_numpy() -> None:
    images = torch.randint(0, 256, (5000, 3, 4, 5), dtype=torch.uint8)
    mean, std = measure_mean_std(images)
    pixels = images.double().numpy() / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-9)
    assert measure_mean_std(images.split(77)) == (mean, std)
    assert measure_mean_std(torch.zeros(2, 1, 3, 3, dtype=torch.uint8)) == ((0.0,), (1.0,))
    with pytest.raises(DataError, match="no image"):
        measure_mean_std([])
    with pytest.raises(DataError, match="uint8"):
        measure_mean_std(images.float())


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_an_extreme_strip_does_not_fill_the_memory(shape: tuple[int, int]) -> None:
    preprocess = ImagePreprocess(size=(224, 224), channels=1, resize="crop", mean=(0.0,), std=(1.0,))
    strip = np.zeros(shape, np.uint8)
    strip[shape[0] // 2 - 1 : shape[0] // 2 + 1, shape[1] // 2 - 1 : shape[1] // 2 + 1] = 200
    image = preprocess.read(strip)
    assert image.shape == (1, 224, 224)
    assert image.max() == 200  # the centre is what is kept
