from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from reskit.data import (
    Augment,
    EpochSampler,
    ImagePreprocess,
    MemoryImages,
    Source,
    choose_mode,
    decode_split,
    make_loader,
    open_source,
)
from reskit.data.memory import verify_split
from reskit.data.seeds import derive_seed
from reskit.errors import ConfigError, DataError

Make = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one processor
VARIED = Augment(flip=True, crop_padding=2, rotate=5)
MODES = [("memory", 0), ("stream", 0), ("stream", 2)]


@pytest.fixture
def source(make_folder: Make, tmp_path: Path) -> Source:
    root = make_folder({"train/a": 15, "train/b": 12, "test/a": 5, "test/b": 6})
    return open_source(root, cache_dir=tmp_path / "cache")


@pytest.fixture
def preprocess() -> ImagePreprocess:
    return ImagePreprocess(size=(12, 10))


def loader(source: Source, preprocess: ImagePreprocess, mode: str, workers: int, **options: Any) -> Any:
    settings = {"shuffle": True, "augment": VARIED, "seed": 3, "batch_size": 4, **options}
    return make_loader(source["train"], preprocess=preprocess, mode=mode, workers=workers, **settings)


def same(one: Iterable[dict[str, torch.Tensor]], other: Iterable[dict[str, torch.Tensor]]) -> bool:
    first, second = list(one), list(other)
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key])
        for a, b in zip(first, second, strict=True)
        for key in ("image", "label", "index")
    )


@pytest.mark.parametrize(("mode", "workers"), MODES)
def test_batches_hold_the_images_of_the_split(
    source: Source, preprocess: ImagePreprocess, mode: str, workers: int
) -> None:
    batches = list(loader(source, preprocess, mode, workers, shuffle=False, augment=None))
    assert [len(batch["label"]) for batch in batches] == [4] * 6 + [3]
    split = source["train"]
    for batch in batches:
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
            assert torch.equal(image, preprocess.read(split.item(int(index))))
            assert int(label) == split.all_labels[int(index)]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(27))
    assert len(list(loader(source, preprocess, mode, workers, drop_last=True))) == 6


def test_stream_does_not_depend_on_workers(source: Source, preprocess: ImagePreprocess) -> None:
    alone, pair = loader(source, preprocess, "stream", 0), loader(source, preprocess, "stream", 2)
    assert same(alone, pair)


@pytest.mark.parametrize(("mode", "workers"), MODES)
def test_resume_inside_an_epoch_is_exact(
    source: Source, preprocess: ImagePreprocess, mode: str, workers: int
) -> None:
    accelerator = Accelerator(cpu=True)
    whole = accelerator.prepare(loader(source, preprocess, mode, workers))
    epochs = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        epochs.append(list(whole))
    assert not same(epochs[0], epochs[1])
    assert not torch.equal(epochs[0][0]["index"], epochs[1][0]["index"])

    fresh = accelerator.prepare(loader(source, preprocess, mode, workers))
    fresh.set_epoch(2)
    assert same(accelerator.skip_first_batches(fresh, 3), epochs[2][3:])
    again = accelerator.prepare(loader(source, preprocess, mode, workers))
    again.set_epoch(2)
    assert same(again, epochs[2])


def test_gather_for_metrics_counts_every_image_once(source: Source, preprocess: ImagePreprocess) -> None:
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(
        make_loader(source["test"], preprocess=preprocess, batch_size=4, mode="memory")
    )
    seen = torch.cat([accelerator.gather_for_metrics(batch["index"]) for batch in prepared])
    assert seen.tolist() == list(range(11))


def test_sampler_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int, shuffle: bool = True) -> list[int]:
        sampler = EpochSampler(50, seed=seed, shuffle=shuffle)
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {key // 50 for key in keys} == {epoch}
        return [key % 50 for key in keys]

    assert sorted(order(0, 3)) == list(range(50))
    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert order(0, 3, shuffle=False) == list(range(50))


def test_seeds_do_not_collide() -> None:
    keys = [
        (seed, name, epoch, n) for seed in range(3) for name in "ab" for epoch in range(20) for n in range(50)
    ]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys[:100])
    assert derive_seed(0, "order", 1) == 7021862330116196507


def test_batch_augmentation_is_keyed_by_its_first_index() -> None:
    images = torch.randint(0, 256, (40, 6, 6, 3), dtype=torch.uint8)
    data = MemoryImages(images, torch.arange(40), augment=VARIED, seed=1)
    one = data.__getitems__([5, 6, 7])["image"]
    assert torch.equal(one, data.__getitems__([5, 6, 7])["image"])
    assert not torch.equal(one, data.__getitems__([45, 46, 47])["image"])  # the same images, next epoch
    single = MemoryImages(images, torch.arange(40))[3]
    assert torch.equal(single["image"], images[3].permute(2, 0, 1))


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_policies_stream_and_are_keyed(source: Source, preprocess: ImagePreprocess, policy: Any) -> None:
    augment = Augment(auto=policy)
    one = list(loader(source, preprocess, "stream", 0, augment=augment))
    torch.rand(7)
    assert same(one, loader(source, preprocess, "stream", 2, augment=augment))
    plain = list(loader(source, preprocess, "stream", 0, augment=None))
    assert not same(one, plain)
    with pytest.raises(ConfigError, match="data mode to stream"):
        loader(source, preprocess, "memory", 0, augment=augment)


@pytest.mark.parametrize(("mode", "workers"), MODES[:2])
def test_random_resized_crop_hands_out_the_size_asked_for(
    source: Source, preprocess: ImagePreprocess, mode: str, workers: int
) -> None:
    made = loader(source, preprocess, mode, workers, augment=Augment(random_resized_crop=(0.3, 1.0)))
    assert {tuple(batch["image"].shape[1:]) for batch in made} == {(3, 12, 10)}
    if mode == "memory":
        assert made.dataset.images.shape[1:] == (14, 12, 3)


@pytest.mark.parametrize(("mode", "workers"), MODES)
def test_a_pass_leaves_the_global_generator_alone(
    source: Source, preprocess: ImagePreprocess, mode: str, workers: int
) -> None:
    augment = Augment(auto="trivial") if mode == "stream" else VARIED
    prepared = Accelerator(cpu=True).prepare(loader(source, preprocess, mode, workers, augment=augment))
    before = torch.get_rng_state()
    list(prepared)
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_change_nothing(source: Source, preprocess: ImagePreprocess) -> None:
    one, four = (decode_split(source["train"], preprocess, workers=n) for n in (1, 4))
    assert torch.equal(one.images, four.images)
    assert one.images.is_contiguous()


def test_stream_leaves_out_unreadable_images_before_it_starts(
    make_folder: Make, tmp_path: Path, preprocess: ImagePreprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"train/a": 4, "train/b": 4, "test/a": 1, "test/b": 1})
    whole = (root / "train/a/001.png").read_bytes()
    (root / "train/a/001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"1 unreadable image: train/a/001\.png"):
        loader(open_source(root, cache_dir=tmp_path / "c"), preprocess, "stream", 0)
    source = open_source(root, on_corrupt="skip", cache_dir=tmp_path / "c")
    monkeypatch.setattr(ImagePreprocess, "decode", lambda *_: pytest.fail("the record was not used"))
    verify_split(source["train"], preprocess)
    monkeypatch.undo()
    batches = list(loader(source, preprocess, "stream", 0, shuffle=False))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert source.describe().corrupt == ["train/a/001.png"]
    assert same(batches, loader(source, preprocess, "stream", 2, shuffle=False))


def test_mode_is_chosen_by_memory_and_augmentation(source: Source, preprocess: ImagePreprocess) -> None:
    info = source.describe()
    needed = 38 * 12 * 10 * 3
    assert choose_mode(info, preprocess, budget_bytes=needed)[0] == "memory"
    mode, reason = choose_mode(info, preprocess, budget_bytes=needed - 1)
    assert mode == "stream"
    assert "38 examples" in reason
    assert "\n" not in reason
    assert choose_mode(info, preprocess)[0] == "memory"
    mode, reason = choose_mode(info, preprocess, augment=Augment(auto="rand"))
    assert (mode, "image by image" in reason) == ("stream", True)
    crops = Augment(random_resized_crop=(0.1, 1.0))
    assert choose_mode(info, preprocess, augment=crops, budget_bytes=needed)[0] == "stream"


def test_settings_import_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from reskit.data import Augment, DataInfo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
