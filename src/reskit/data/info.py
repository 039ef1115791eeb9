"""What is known of a data set before any network sees it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["DataInfo", "ImageSizes", "SplitInfo"]


class SplitInfo(BaseModel):
    """How many examples a split holds, in all and of each class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    per_class: dict[str, int]


class ImageSizes(BaseModel):
    """Smallest, median and largest image as ``(height, width)`` in pixels, each side taken by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: tuple[int, int]
    median: tuple[int, int]
    max: tuple[int, int]

    @property
    def uniform(self) -> bool:
        """Whether all images measured have one size."""
        return self.min == self.max


class DataInfo(BaseModel):
    """Description of a source; a plain record that goes to JSON and back.

    Attributes:
        kind: name of the source kind, such as ``"folder"``.
        title: that kind in words, such as ``"image folder"``.
        location: where the data was opened from.
        columns: which column holds the examples and which the ``label`` or another target.
        classes: class names; a label is an index into this list. Empty where there are none.
        splits: counts of each split.
        held_out: the split a final evaluation uses.
        image_sizes: measured on the headers of all images, or of a seeded sample of a large set; None where
            examples are no images.
        channels: 1 if every image measured is grey, else 3; 0 where examples are no images.
        extent: what examples are like, for people, where they are no images.
        corrupt: examples that cannot be read, found so far.
        fingerprint: names these data; any change of content, label or split changes it.
        notes: what was found and left aside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    title: str
    location: str
    columns: dict[str, str]
    classes: list[str]
    splits: dict[str, SplitInfo]
    held_out: str
    image_sizes: ImageSizes | None = None
    channels: int = 0
    extent: str = ""
    corrupt: list[str]
    fingerprint: str
    notes: list[str] = []

    @property
    def sizes(self) -> ImageSizes:
        """Sizes of the images that the examples are."""
        assert self.image_sizes is not None
        return self.image_sizes

    def lines(self) -> list[str]:
        """Return a few short lines for a person."""
        shown = ", ".join(self.classes[:6]) + (", ..." if len(self.classes) > 6 else "")
        classes = f"{len(self.classes)} classes ({shown}); " if self.classes else ""
        counts = ", ".join(f"{name} {split.count:,}" for name, split in self.splits.items())
        extent = self.extent if self.image_sizes is None else self._images(self.image_sizes)
        lines = [
            f"{self.title}: {classes}{counts}",
            f"{extent}; final evaluation on {self.held_out!r}",
        ]
        if self.corrupt:
            what = "examples" if self.image_sizes is None else "images"
            lines.append(f"{len(self.corrupt)} unreadable {what} left out: {', '.join(self.corrupt[:5])}")
        return lines + list(self.notes)

    def _images(self, sizes: ImageSizes) -> str:
        low, high = sizes.min, sizes.max
        extent = f"{low[0]}x{low[1]}" if low == high else f"{low[0]}x{low[1]} to {high[0]}x{high[1]}"
        return f"images {extent} (height x width), {'grey' if self.channels == 1 else 'colour'}"
