"""What tasks share that answer every pixel: images of any size, patches to learn from, tiles to answer by."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from reskit.config import Recipe
from reskit.data import DataInfo, ImagePreprocess
from reskit.tasks.base import Network, Task, TaskSettings

if TYPE_CHECKING:
    from reskit.data import Split

__all__ = ["DenseSettings", "DenseTask", "centre", "pad_to", "tiled"]

TILE = 128
OVERLAP = 0.25
TILES_AT_ONCE = 16


class DenseSettings(TaskSettings):
    """What a recipe may say of a task that answers every pixel."""

    patch: int = Field(64, ge=8, description="side in pixels of the squares that are learned from")
    patches: int = Field(16, ge=1, description="so many of each image an epoch")


class DenseTask(Task):
    """An answer for every pixel.

    A network learns from patches and answers images of any size: in tiles of ``preprocess.size``, which is
    also what engines are made for, blended where they overlap.
    """

    Settings = DenseSettings
    settings: DenseSettings
    preprocess: ImagePreprocess
    scale = 1
    """By how much the answer is larger than what the network is given."""

    @classmethod
    def geometry(cls, recipe: Recipe, info: DataInfo, train: Split) -> ImagePreprocess:
        """Return tiles of the size asked for, of `TILE` pixels by default; images are never scaled."""
        size = recipe.preprocess.size or (TILE, TILE)
        channels = info.channels
        return ImagePreprocess(size=size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)

    def stored(self, info: DataInfo) -> ImagePreprocess:
        """Return the images' own size; see `Task.stored`."""
        return self.preprocess.model_copy(update={"size": info.sizes.median})

    def read(self, item: object) -> Tensor:
        """Return an image at its own size; see `Task.read`."""
        return self.preprocess.decode(item)

    def sample(self, item: object) -> Tensor:
        """Return the centre of an image, a tile large; see `Task.sample`."""
        return centre(pad_to(self.read(item), self.preprocess.size), self.preprocess.size)

    def outputs(self, network: Network, images: Tensor) -> Tensor:
        """Answer whole images; see `tiled`."""
        return tiled(network, images, self.preprocess.size, scale=self.scale)


def tiled(
    network: Network, images: Tensor, size: tuple[int, int], *, scale: int = 1, overlap: float = OVERLAP
) -> Tensor:
    """Answer images of any size by a network for tiles.

    Tiles overlap, and where they do their answers are blended with weights that fall linearly towards a
    tile's border. An image smaller than a tile is continued by its mirror image.

    Args:
        network: raw pixels `(N, C, h, w)` of a tile to `(N, K, scale * h, scale * w)`.
        images: raw pixels `(N, C, H, W)`.
        size: `(h, w)` of a tile.
        scale: by how much answers are larger.
        overlap: part of a tile that it shares with its neighbour.

    Returns:
        `(N, K, scale * H, scale * W)`.
    """
    if tuple(images.shape[-2:]) == size:
        return network(images)
    height, width = images.shape[-2:]
    padded = pad_to(images, size)
    places = list(
        product(*(_starts(side, tile, overlap) for side, tile in zip(padded.shape[-2:], size, strict=True)))
    )
    weight = _weight(size, scale, overlap)
    total: Tensor | None = None
    for index, image in enumerate(padded):
        for chunk in _chunks(places):
            tiles = torch.stack([image[:, top : top + size[0], left : left + size[1]] for top, left in chunk])
            for (top, left), answer in zip(chunk, network(tiles), strict=True):
                if total is None:
                    shape = (answer.shape[0], padded.shape[-2] * scale, padded.shape[-1] * scale)
                    total = answer.new_zeros((len(images), *shape), dtype=torch.float32)
                    weight = weight.to(answer.device)
                    norm = total.new_zeros(shape[1:])
                rows = slice(top * scale, (top + size[0]) * scale)
                columns = slice(left * scale, (left + size[1]) * scale)
                total[index, :, rows, columns] += answer * weight
                if index == 0:
                    norm[rows, columns] += weight
    assert total is not None
    return (total / norm)[..., : height * scale, : width * scale]


def pad_to(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Continue `(..., C, h, w)` downwards and to the right, mirrored, until it is as large as `size`."""
    for axis, side in ((-2, size[0]), (-1, size[1])):
        have = image.shape[axis]
        if have < side:
            index = torch.arange(side, device=image.device) % max(2 * have - 2, 1)
            image = image.index_select(axis, torch.minimum(index, 2 * have - 2 - index).abs())
    return image


def centre(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the middle of `(..., h, w)`."""
    top, left = ((have - want) // 2 for have, want in zip(image.shape[-2:], size, strict=True))
    return image[..., top : top + size[0], left : left + size[1]]


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin along a side: evenly spread, from its beginning to its end."""
    if side == tile:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = -(-(side - tile) // step) + 1
    return [round(place * (side - tile) / (count - 1)) for place in range(count)]


def _weight(size: tuple[int, int], scale: int, overlap: float) -> Tensor:
    """Return the weight of each pixel of an answer, 1 within and falling to the border, never 0."""
    rows, columns = (_ramp(side * scale, max(1, int(side * scale * overlap))) for side in size)
    return rows[:, None] * columns[None, :]


def _ramp(side: int, length: int) -> Tensor:
    place = torch.arange(side, dtype=torch.float32)
    nearest = torch.minimum(place, side - 1 - place) + 1
    return (nearest / (length + 1)).clamp(max=1.0)


def _chunks(places: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    for start in range(0, len(places), TILES_AT_ONCE):
        yield places[start : start + TILES_AT_ONCE]
