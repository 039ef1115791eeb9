"""Images and masks are varied together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reskit.data import Augment, augment_batch
from reskit.data.batch_augment import bend
from reskit.data.images import IGNORED
from reskit.data.mask_vary import check_augment, vary_masked
from reskit.errors import ConfigError

SIZE = (48, 64)
PATCH = (24, 24)
MOVES: dict[str, dict[str, Any]] = {
    "none": {},
    "flip": {"flip": 1.0},
    "dihedral": {"dihedral": True},
    "padded": {"crop_padding": 5},
    "mirrored": {"crop_padding": 5, "padding_mode": "reflect"},
    "cropped": {"random_resized_crop": (0.1, 0.6)},
    "turned": {"rotate": 60},
    "shifted": {"translate": 0.3},
    "bent": {"elastic": 4.0},
    "all": {"flip": 0.5, "dihedral": True, "rotate": 20, "translate": 0.1, "elastic": 3.0, "crop_padding": 2},
}


def scene() -> tuple[Tensor, Tensor]:
    """Return a picture whose brightness tells the class, in areas that borders are a small part of."""
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    mask = ((rows - 20) ** 2 + (columns - 25) ** 2 < 150).long() + 2 * (columns > 45).long()
    return (mask * 80 + 10).to(torch.uint8)[None], mask.to(torch.uint8)


def varied(seed: int, **augment: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return vary_masked(*scene(), Augment(**augment), PATCH, generator)


@pytest.mark.parametrize("kind", MOVES)
def test_the_mask_goes_where_the_image_goes(kind: str) -> None:
    different = set()
    for seed in range(12):
        image, mask = varied(seed, **MOVES[kind])
        assert (image.shape, mask.shape) == ((1, *PATCH), PATCH)
        assert (image.dtype, mask.dtype) == (torch.uint8, torch.uint8)
        labelled = mask != IGNORED
        assert labelled.float().mean() > 0.4
        # Interpolation blurs the image at borders, where it cannot tell the class.
        wrong = (image[0].double() - (mask.double() * 80 + 10)).abs()[labelled] > 40
        assert wrong.double().mean() < 0.06
        assert set(mask.unique().tolist()) <= {0, 1, 2, IGNORED}
        different.add(tuple(mask.flatten().tolist()))
    assert len(different) > 6


@pytest.mark.parametrize("kind", MOVES)
def test_it_is_a_function_of_the_generator(kind: str) -> None:
    first, again, other = varied(3, **MOVES[kind]), varied(3, **MOVES[kind]), varied(4, **MOVES[kind])
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_nothing_but_a_window_is_cut_without_variation() -> None:
    image, mask = scene()
    patch, classes = varied(0)
    windows = image[0].unfold(0, PATCH[0], 1).unfold(1, PATCH[1], 1)
    places = (windows == patch[0]).all(-1).all(-1).nonzero()
    assert len(places) >= 1
    top, left = places[0].tolist()
    assert torch.equal(classes, mask[top : top + PATCH[0], left : left + PATCH[1]])


def test_every_pixel_of_an_image_is_seen_also_where_it_is_bent() -> None:
    rows = torch.arange(30, dtype=torch.uint8)
    image = rows[None, :, None].expand(1, 30, 30).contiguous()
    seen = set()
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        patch, _ = vary_masked(image, image[0], Augment(elastic=1.0), (20, 20), generator)
        seen |= set(patch.unique().tolist())
    assert seen == set(range(30))


def test_an_image_smaller_than_the_patch_is_continued_by_its_mirror_image() -> None:
    image = torch.arange(5, dtype=torch.uint8).expand(1, 5, 5).contiguous()
    patch, mask = vary_masked(image, image[0], Augment(), (9, 9), torch.Generator().manual_seed(0))
    assert torch.equal(patch[0], mask)
    steps = mask[0].int().diff().abs()
    assert (steps == 1).all()  # neighbours stay neighbours: nothing is repeated or torn


def test_colour_changes_the_image_alone() -> None:
    plain, same = varied(0), varied(0, color_jitter=(0.4, 0.4, 0.0))
    assert torch.equal(plain[1], same[1])
    assert same[0].is_floating_point()
    assert not torch.equal(plain[0].float(), same[0])


@pytest.mark.parametrize(("name", "value"), [("auto", "trivial"), ("mixup", 0.2), ("cutmix", 1.0)])
def test_what_is_not_for_masks_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.{name} is for images with one label"):
        check_augment(Augment(**{name: value}))


# Bending whole batches, as classification does.


def test_an_even_shift_moves_everything() -> None:
    images = torch.rand(2, 3, 12, 16)
    shifts = torch.zeros(2, 2, 3, 3)
    shifts[1, 0], shifts[1, 1] = 2.0, -3.0  # looks 2 to the right and 3 up
    bent = bend(images, shifts)
    torch.testing.assert_close(bent[0], images[0])
    torch.testing.assert_close(bent[1][:, 3:, :-2], images[1][:, :-3, 2:])


def test_images_are_bent_by_about_as_much_as_asked() -> None:
    columns = torch.arange(64, dtype=torch.float32).expand(200, 1, 64, 64).contiguous()
    moved = augment_batch(columns, Augment(elastic=2.0), torch.Generator().manual_seed(0)) - columns
    at_centre = moved[:, 0, 31:33, 31:33].mean((1, 2))
    assert at_centre.std() == pytest.approx(2.0, rel=0.15)
    assert at_centre.mean().abs() < 0.5
