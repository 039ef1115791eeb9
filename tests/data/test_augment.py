from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from reskit.data import Augment, augment_batch
from reskit.data.batch_augment import adjust_color, crop_flip, draw_boxes, erase_boxes, warp
from reskit.errors import ConfigError


def batch(count: int = 6, channels: int = 3, height: int = 14, width: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 256, (count, height, width, channels), generator=generator, dtype=torch.uint8)
    return stored.permute(0, 3, 1, 2)


def keyed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("mode", "torchvision_mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_crop_and_flip_agree_with_torchvision(mode: str, torchvision_mode: str) -> None:
    images = batch()
    offset = torch.tensor([[0, 0], [8, 8], [4, 4], [1, 7], [8, 0], [3, 5]])
    flip = torch.tensor([True, False, True, False, True, False])
    got = crop_flip(images, offset, flip, 4, mode)
    for n, image in enumerate(images):
        padded = tv.pad(image, [4, 4, 4, 4], padding_mode=torchvision_mode)
        expected = tv.crop(padded, int(offset[n, 0]), int(offset[n, 1]), 14, 11)
        expected = tv.horizontal_flip(expected) if flip[n] else expected
        assert torch.equal(got[n], expected)
    assert got.dtype == torch.uint8
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_crop_reads_contiguous_images_too() -> None:
    images = batch()
    offset, flip = torch.randint(0, 5, (6, 2)), torch.rand(6) < 0.5
    assert torch.equal(crop_flip(images.contiguous(), offset, flip, 2), crop_flip(images, offset, flip, 2))


def test_rotation_and_shift_agree_with_torchvision() -> None:
    images = batch().float()
    angle = torch.tensor([0.0, 10.0, -25.0, 90.0, 0.0, 170.0])
    pixels = torch.tensor([[0, 0], [2, -3], [1, 1], [0, 0], [-4, 5], [3, 0]])  # right, down
    shift = pixels / torch.tensor([11.0, 14.0])
    got = warp(images, boxes=None, angle=angle, shift=shift, size=(14, 11))
    for n, image in enumerate(images):
        expected = tv.affine(
            image,
            angle=float(angle[n]),
            translate=pixels[n].tolist(),
            scale=1.0,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        # torchvision blends the border with its fill through a mask, grid_sample by weights: same inside.
        inside = tv.affine(
            torch.ones_like(image),
            float(angle[n]),
            pixels[n].tolist(),
            1.0,
            [0.0, 0.0],
            InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(got[n] * (inside > 0.999), expected * (inside > 0.999), rtol=0, atol=0.02)
        assert (inside > 0.999).float().mean() > 0.3


def test_resized_crop_agrees_with_torchvision() -> None:
    images = batch().float()
    boxes = torch.tensor(
        [[0, 0, 14, 11], [2, 3, 7, 5], [1, 0, 13, 4], [5, 5, 6, 6], [0, 2, 9, 9], [13, 10, 1, 1]]
    )
    zero = torch.zeros(6)
    got = warp(images, boxes=boxes, angle=zero, shift=torch.zeros(6, 2), size=(8, 10))
    for n, image in enumerate(images):
        top, left, tall, wide = boxes[n].tolist()
        y = (torch.arange(8) + 0.5) * tall / 8 - 0.5
        x = (torch.arange(10) + 0.5) * wide / 10 - 0.5
        expected = tv.resized_crop(image, top, left, tall, wide, [8, 10], antialias=False)
        # At the rim torchvision repeats the box's last pixel where we see the pixel beyond it.
        rows, columns = (y >= 0) & (y <= tall - 1), (x >= 0) & (x <= wide - 1)
        mask = rows[:, None] & columns[None]
        torch.testing.assert_close(got[n] * mask, expected * mask, rtol=0, atol=0.02)
    assert got.shape == (6, 3, 8, 10)


def test_colour_agrees_with_torchvision() -> None:
    images = batch()
    factors = torch.tensor(
        [[1.0, 0.5, 1.4, 1.0, 0.8, 1.2], [1.0, 1.3, 0.6, 0.2, 1.0, 1.4], [1.0, 0.0, 1.5, 0.7, 1.2, 1.0]]
    )
    got = adjust_color(images, *factors)
    for n, image in enumerate(images.float() / 255):
        expected = tv.adjust_brightness(image, float(factors[0, n]))
        expected = tv.adjust_contrast(expected, float(factors[1, n]))
        expected = tv.adjust_saturation(expected, float(factors[2, n]))
        # torchvision rounds the luma weights to four digits (0.2989, 0.587, 0.114).
        torch.testing.assert_close(got[n], expected * 255, rtol=0, atol=0.1)
    grey = batch(channels=1)
    brighter = adjust_color(grey, torch.full((6,), 1.5), torch.ones(6), torch.zeros(6))
    torch.testing.assert_close(brighter, (grey.float() * 1.5).clamp(max=255))


def test_erase_fills_one_box_with_the_mean() -> None:
    images = batch()
    boxes = torch.tensor(
        [[0, 0, 0, 0], [2, 3, 4, 5], [0, 0, 14, 11], [13, 10, 1, 1], [5, 0, 2, 11], [0, 0, 1, 0]]
    )
    got = erase_boxes(images, boxes)
    for n, image in enumerate(images):
        top, left, tall, wide = boxes[n].tolist()
        mean = image.float().mean((1, 2)).to(torch.uint8)[:, None, None]
        expected = tv.erase(image, top, left, tall, wide, mean) if tall * wide else image
        assert torch.equal(got[n], expected)


def test_boxes_have_the_area_and_aspect_asked_for() -> None:
    boxes = draw_boxes(20_000, (200, 200), (0.1, 0.3), (0.5, 2.0), keyed()).double()
    top, left, tall, wide = boxes.unbind(1)
    assert (top >= 0).all()
    assert (top + tall).max() <= 200
    assert (left + wide).max() <= 200
    area, aspect = tall * wide / 40_000, wide / tall
    assert 0.095 < area.min() < area.max() < 0.305
    assert 0.48 < aspect.min() < aspect.max() < 2.1
    assert abs(area.mean() - 0.2) < 0.002
    assert abs(aspect.log().mean()) < 0.01
    assert draw_boxes(50, (4, 40), (0.5, 1.0), (3 / 4, 4 / 3), keyed())[:, 2].max() <= 4


def test_same_key_same_batch() -> None:
    images = batch(32)
    everything = Augment(
        flip=True,
        crop_padding=2,
        rotate=10,
        translate=0.1,
        color_jitter=(0.2, 0.2, 0.2),
        erase=0.5,
        random_resized_crop=(0.5, 1.0),
    )
    one = augment_batch(images, everything, keyed(1))
    assert torch.equal(one, augment_batch(images, everything, keyed(1)))
    assert not torch.equal(one, augment_batch(images, everything, keyed(2)))
    assert one.shape == images.shape
    assert one.is_contiguous(memory_format=torch.channels_last)
    assert one.min() >= 0
    assert one.max() <= 255


def test_nothing_asked_nothing_done() -> None:
    images = batch()
    assert augment_batch(images, Augment(), keyed()) is images
    assert not Augment(mixup=0.2, cutmix=1.0, padding_mode="reflect").changes_pixels
    assert Augment(flip=0.1).changes_pixels


def test_flip_happens_as_often_as_asked() -> None:
    images = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).expand(10_000, 1, 1, 4)
    flipped = augment_batch(images, Augment(flip=0.3), keyed())[:, 0, 0, 0] == 3
    assert abs(flipped.float().mean() - 0.3) < 3 * math.sqrt(0.21 / 10_000)


def test_every_offset_is_drawn() -> None:
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 255
    seen = augment_batch(image.expand(2000, 1, 9, 9), Augment(crop_padding=2), keyed()).flatten(1).argmax(1)
    assert set(seen.tolist()) == {y * 9 + x for y in range(2, 7) for x in range(2, 7)}


def test_settings_are_strict() -> None:
    assert Augment(flip=True).flip == 0.5
    assert Augment.model_validate_json(Augment(flip=True, erase=0.2).model_dump_json()) == Augment(
        flip=0.5, erase=0.2
    )
    for wrong in (
        {"flop": 1},
        {"flip": 1.5},
        {"crop_padding": -1},
        {"random_resized_crop": (0.5, 0.1)},
        {"random_resized_crop": (0.5, 1.1)},
        {"auto": "magic"},
    ):
        with pytest.raises(ValidationError):
            Augment(**wrong)


def test_what_cannot_be_vectorised_is_refused() -> None:
    with pytest.raises(ConfigError, match="streaming"):
        augment_batch(batch(), Augment(auto="trivial"), keyed())
    with pytest.raises(ConfigError, match="smaller than the image"):
        augment_batch(batch(), Augment(crop_padding=11, padding_mode="reflect"), keyed())
