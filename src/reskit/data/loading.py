"""Batches for training and evaluation, the same whatever the worker count and wherever a run resumes.

Nothing here holds random state. The order of an epoch is a function of ``(seed, epoch)``, the augmentation of
a batch in memory of ``(seed, epoch, first index)``, that of a streamed image of ``(seed, epoch, index)``.
The sampler writes the epoch into the keys it hands out (``epoch * n + index``), so that datasets, even
copies in worker processes, never hold an epoch that could go stale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypedDict, TypeVar

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from reskit.data.augment import Augment
from reskit.data.batch_augment import augment_batch, draw_boxes
from reskit.data.info import DataInfo
from reskit.data.memory import decode_split, processors, verify_split
from reskit.data.preprocess import Preprocess
from reskit.data.seeds import derive_seed
from reskit.data.split import Split
from reskit.data.transforms import ImagePreprocess
from reskit.errors import ConfigError

__all__ = [
    "Batch",
    "EpochSampler",
    "MemoryImages",
    "Mode",
    "StreamImages",
    "batches",
    "choose_mode",
    "make_loader",
]

Mode = Literal["memory", "stream"]
_Kept = TypeVar("_Kept", bound=Preprocess)
_MEMORY_SHARE = 0.25
_MEMORY_LIMIT = 4 * 2**30
_POLICIES = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}


class Batch(TypedDict):
    """One batch: ``image`` ``(N, C, H, W)`` uint8 or float in [0, 255], ``label``, ``index`` int64 ``(N,)``.

    ``label`` is -1 where there is none. ``index`` is the row number in the split, whatever was left out or
    shuffled.
    """

    image: Tensor
    label: Tensor
    index: Tensor


class EpochSampler(Sampler[int]):
    """Keys of one epoch, ``epoch * n + index``; their order is a pure function of ``(seed, epoch)``.

    Args:
        n: number of images.
        seed: of the shuffling.
        shuffle: else in order.
    """

    def __init__(self, n: int, *, seed: int = 0, shuffle: bool = True) -> None:
        self.n = n
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.n
        if not self.shuffle:
            return iter(range(first, first + self.n))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        return iter((torch.randperm(self.n, generator=generator) + first).tolist())


class MemoryImages(Dataset[Batch]):
    """A decoded split; a batch is one gather and one vectorised augmentation.

    Args:
        images: uint8 ``(N, H, W, C)``.
        labels: int64 ``(N,)``.
        rows: row number of each image in its split; 0 to N - 1 by default.
        augment: variation of the images, none by default.
        size: ``(h, w)`` handed out, when images are stored larger for a random resized crop.
        seed: of the augmentation.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        rows: Tensor | None = None,
        augment: Augment | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        if augment is not None and not augment.vectorised:
            raise ConfigError(
                f"augment.auto={augment.auto!r} works image by image: set the data mode to stream"
            )
        self.images = images
        self.labels = labels
        self.rows = torch.arange(len(labels)) if rows is None else rows
        self.augment = augment if augment is not None and augment.changes_pixels else None
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> Batch:
        batch = self.__getitems__([key])
        return Batch(image=batch["image"][0], label=batch["label"][0], index=batch["index"][0])

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        """Return the batch of `keys`, images channels last."""
        epoch, first = divmod(keys[0], len(self))
        index = torch.tensor(keys, dtype=torch.int64) % len(self)
        images = self.images.index_select(0, index).permute(0, 3, 1, 2)
        if self.augment is not None:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "batch", epoch, first))
            images = augment_batch(images, self.augment, generator, size=self.size)
        return Batch(image=images, label=self.labels[index], index=self.rows[index])


class StreamImages(Dataset[Batch]):
    """A split read from disk image by image, in worker processes where the loader has some.

    Args:
        split: where the images are.
        preprocess: how to read one.
        augment: variation of the images, none by default.
        seed: of the augmentation.
    """

    def __init__(
        self,
        split: Split,
        preprocess: ImagePreprocess,
        *,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.split = split
        self.preprocess = preprocess
        self.augment = augment if augment is not None and augment.changes_pixels else None
        self.seed = seed
        self.labels = torch.from_numpy(split.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> Batch:
        epoch, place = divmod(key, len(self))
        row = int(self.split.rows[place])
        item = self.split.item(row)
        if self.augment is None:
            image = self.preprocess.read(item)
        else:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "image", epoch, place))
            image = self._varied(item, self.augment, generator)
        return Batch(image=image, label=self.labels[place], index=torch.tensor(row))

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        """Return the batch of `keys`, images channels last."""
        samples = [self[key] for key in keys]
        stored = torch.stack([sample["image"].permute(1, 2, 0) for sample in samples])
        return Batch(
            image=stored.permute(0, 3, 1, 2),
            label=torch.stack([sample["label"] for sample in samples]),
            index=torch.stack([sample["index"] for sample in samples]),
        )

    def _varied(self, item: object, augment: Augment, generator: torch.Generator) -> Tensor:
        if augment.random_resized_crop is None:
            image = self.preprocess.read(item)
        else:
            whole = self.preprocess.decode(item)
            shape = (whole.shape[1], whole.shape[2])
            box = draw_boxes(1, shape, augment.random_resized_crop, augment.aspect, generator)[0].tolist()
            image = tv.resized_crop(whole, *box, size=list(self.preprocess.size), antialias=True)
        if augment.auto is not None:
            # torchvision's policies draw from the global generator: lend it a keyed state.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
                image = _POLICIES[augment.auto]()(image)
        rest = augment.model_copy(update={"random_resized_crop": None, "auto": None})
        return augment_batch(image[None], rest, generator)[0]


def choose_mode(
    info: DataInfo,
    preprocess: Preprocess,
    *,
    augment: Augment | None = None,
    budget_bytes: int | None = None,
) -> tuple[Mode, str]:
    """Decide whether all images are kept decoded in memory or read again every epoch.

    Args:
        info: what `Source.describe` returned.
        preprocess: gives the decoded size.
        augment: what works image by image only needs the stream.
        budget_bytes: memory to spend; by default a quarter of what is available, at most 4 GiB.

    Returns:
        the mode, and the reason in one line.
    """
    if augment is not None and not augment.vectorised:
        return "stream", f"examples are streamed: augment.auto={augment.auto!r} works image by image"
    if budget_bytes is None:
        budget_bytes = min(int(psutil.virtual_memory().available * _MEMORY_SHARE), _MEMORY_LIMIT)
    stored = _stored(preprocess, augment)
    count = sum(split.count for split in info.splits.values())
    needed = count * math.prod(stored.shape)
    sizes = f"{count:,} examples take {needed / 2**20:,.0f} of {budget_bytes / 2**20:,.0f} MiB allowed"
    if needed <= budget_bytes:
        return "memory", f"examples are kept in memory: {sizes}"
    return "stream", f"examples are streamed: {sizes}"


def make_loader(
    split: Split,
    *,
    preprocess: ImagePreprocess,
    batch_size: int,
    augment: Augment | None = None,
    shuffle: bool = False,
    seed: int = 0,
    mode: Mode = "memory",
    workers: int | None = None,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Build the loader of one split; it yields `Batch` records.

    To resume inside an epoch, prepare the loader with Accelerate, call ``set_epoch(epoch)`` on what comes
    back, then ``accelerator.skip_first_batches(loader, done)``: the rest of the epoch is pixel-equal,
    for any number of workers. Leave `use_stateful_dataloader` off: Accelerate 1.15 takes a snapshot of a
    stateful loader while preparing it, so the first pass ignores ``set_epoch`` (until ``load_state_dict``).

    Args:
        split: where the images are.
        preprocess: how to read one.
        batch_size: images a batch.
        augment: variation of the images; None for evaluation.
        shuffle: a new order every epoch.
        seed: of order and augmentation.
        mode: ``"memory"`` decodes the split now; ``"stream"`` reads images as they are needed, after one
            cached pass that finds unreadable ones.
        workers: worker processes of the stream, by default one a processor, at most 8; a split in memory
            needs none.
        drop_last: leave out a last smaller batch.
        pin_memory: for copies to a GPU.

    Raises:
        DataError: unreadable images, and the split refuses them.
        ConfigError: `augment` does not work in `mode`.
    """
    dataset: MemoryImages | StreamImages
    if mode == "memory":
        held = decode_split(split, _stored(preprocess, augment), workers=workers)
        dataset = MemoryImages(
            held.images, held.labels, rows=held.rows, augment=augment, size=preprocess.size, seed=seed
        )
        workers = 0
    else:
        verify_split(split, preprocess)
        dataset = StreamImages(split, preprocess, augment=augment, seed=seed)
        workers = min(processors(), 8) if workers is None else workers
    return batches(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        workers=workers,
        drop_last=drop_last,
        pin_memory=pin_memory,
    )


def batches(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Return the loader of a dataset that takes the keys of `EpochSampler` and hands out whole batches."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), seed=seed, shuffle=shuffle),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=as_is,
        drop_last=drop_last,
        pin_memory=pin_memory,
        # Its own generator, or every pass would move the global one and a resumed run would differ.
        generator=torch.Generator().manual_seed(derive_seed(seed, "workers")),
        worker_init_fn=one_thread if workers else None,
    )


def as_is(batch: Any) -> Any:
    """Collate nothing: the datasets return whole batches."""
    return batch


def one_thread(worker: int) -> None:
    """Keep a worker to one thread: several thread pools on the same cores stall each other."""
    torch.set_num_threads(1)


def _stored(preprocess: _Kept, augment: Augment | None) -> _Kept:
    """Return how images are kept in memory: with a margin where a random resized crop will cut from them."""
    if isinstance(preprocess, ImagePreprocess) and augment is not None and augment.random_resized_crop:
        return preprocess.enlarged()
    return preprocess
