from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, picture

from reskit.data import SOURCES, DataInfo, Found, ImagePreprocess, SourceKind, decode_split, open_source
from reskit.errors import DataError

Make = Callable[..., Path]
PLAIN = ImagePreprocess(size=(12, 10))


def test_digits_are_the_default_and_their_split_is_fixed() -> None:
    source = open_source(None)
    info = source.describe()
    assert info.classes == [str(n) for n in range(10)]
    assert {name: split.count for name, split in info.splits.items()} == {"train": 1438, "test": 359}
    assert (info.channels, info.image_sizes.max, info.held_out) == (1, (8, 8), "test")
    other = open_source("digits", seed=5, holdout=0.5).describe()
    assert other == info


def test_digits_pixels_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = open_source(None)
    preprocess = ImagePreprocess(size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
    found = sorted(
        (bytes(preprocess.read(split.item(row)).numpy().tobytes()), int(split.all_labels[row]))
        for split in source.splits.values()
        for row in split.rows
    )
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    expected = sorted(
        (image.tobytes(), int(label)) for image, label in zip(pixels, digits.target, strict=True)
    )
    assert found == expected


def test_part_of_a_split_leaves_the_split_alone() -> None:
    split = open_source(None)["test"]
    part = split.spread(10)
    assert len(part) == len(part.labels) == 10
    assert {part.rows[0], part.rows[-1]} == {split.rows[0], split.rows[-1]}
    np.testing.assert_array_equal(split.spread(1000).rows, split.rows)
    split.on_corrupt = part.on_corrupt = "skip"
    part.reject({int(part.rows[0]): "torn"})
    assert (len(part), len(split), split.corrupt) == (9, 359, {})


def test_folder_with_splits(make_folder: Make) -> None:
    root = make_folder({"train/bee": 3, "train/ant": 2, "val/ant": 1, "val/bee": 1})
    source = open_source(root)
    info = source.describe()
    assert info.kind == "folder"
    assert info.classes == ["ant", "bee"]
    assert info.splits["train"].per_class == {"ant": 2, "bee": 3}
    assert list(info.splits) == ["train", "validation"]
    assert (source.held_out, info.image_sizes.median, info.channels) == ("validation", (12, 10), 3)
    assert "2 classes (ant, bee)" in source.summary()
    assert DataInfo.model_validate_json(info.model_dump_json()) == info
    with pytest.raises(DataError, match="no split 'test'"):
        source["test"]


def test_folder_without_splits_holds_out_of_every_class(make_folder: Make) -> None:
    root = make_folder({"a": 10, "b": 2})
    source = open_source(root, holdout=0.2, seed=1)
    info = source.describe()
    assert info.splits["train"].per_class == {"a": 8, "b": 1}
    assert info.splits["test"].per_class == {"a": 2, "b": 1}

    def held(seed: int) -> list[str]:
        split = open_source(root, seed=seed)["test"]
        return [split.row_name(row) for row in split.rows]

    assert held(1) == held(1)
    assert len({tuple(held(seed)) for seed in range(5)}) > 1


def test_unlabelled_test_folder_is_noted(make_folder: Make) -> None:
    source = open_source(make_folder({"train/a": 4, "train/b": 4, "test": 2}))
    assert len(source["test"]) == 2
    assert any("'test' has no class sub-folders" in note for note in source.notes)


def test_folder_class_may_be_called_test(make_folder: Make) -> None:
    assert open_source(make_folder({"test": 3, "good": 3})).classes == ["good", "test"]


def test_hidden_files_are_ignored_and_strangers_noted(make_folder: Make) -> None:
    root = make_folder({"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1, "extra/a": 1})
    (root / "train/a/.DS_Store").write_bytes(b"x")
    (root / "train/a/Thumbs.db").write_bytes(b"x")
    (root / "train/a/notes.txt").write_text("x")
    info = open_source(root).describe()
    assert info.splits["train"].count == 4
    assert len(info.notes) == 2
    assert any("1 files of other kinds" in note and "notes.txt" in note for note in info.notes)
    assert any("'extra'" in note for note in info.notes)


def test_read_only_folder_is_not_written_to(make_folder: Make, tmp_path: Path) -> None:
    root = make_folder({"a": 3, "b": 3})
    before = sorted(root.rglob("*"))
    for folder in (root, root / "a", root / "b"):
        folder.chmod(0o555)
    try:
        source = open_source(root, cache_dir=tmp_path / "cache")
        source.describe()
        decode_split(source["train"], PLAIN)
    finally:
        for folder in (root, root / "a", root / "b"):
            folder.chmod(0o755)
    assert sorted(root.rglob("*")) == before


def _parquet(path: Path, labels: list[object], image: str = "img", label: str = "label") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(picture(n)), "path": None} for n in range(len(labels))]
    pq.write_table(pa.table({image: images, label: labels}), path)


def test_parquet_folder_as_on_the_hub(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    _parquet(root / "data/train-00000-of-00002.parquet", [0, 1, 2])
    _parquet(root / "data/train-00001-of-00002.parquet", [2, 1])
    _parquet(root / "data/validation-00000-of-00001.parquet", [0, 1, 2])
    _parquet(root / "data/test-00000-of-00001.parquet", [1])
    source = open_source(root, cache_dir=tmp_path / "cache")
    info = source.describe()
    assert (info.kind, info.held_out, info.columns) == ("parquet", "test", {"image": "img", "label": "label"})
    assert {name: split.count for name, split in info.splits.items()} == {
        "train": 5,
        "validation": 3,
        "test": 1,
    }
    assert (decode_split(source["test"], PLAIN).images[0].numpy() == np.asarray(picture(0))).all()


def test_parquet_folder_of_a_converted_set(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _parquet(tmp_path / "set" / "default" / split / "0000.parquet", [0, 1, 0, 1])
    source = open_source(tmp_path / "set", cache_dir=tmp_path / "cache")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 4, "test": 4}


def test_one_parquet_file_with_odd_columns(tmp_path: Path) -> None:
    _parquet(tmp_path / "x.parquet", [10, 20, 10, 20, 9, 9], image="thing", label="kind")
    with pytest.raises(DataError, match=r"which column holds the image: found thing, kind.*image_column"):
        open_source(tmp_path / "x.parquet", cache_dir=tmp_path / "c")
    with pytest.raises(DataError, match=r"no column 'knd'.*did you mean 'kind'"):
        open_source(tmp_path / "x.parquet", column="thing", label_column="knd", cache_dir=tmp_path / "c")
    source = open_source(
        tmp_path / "x.parquet", column="thing", label_column="kind", cache_dir=tmp_path / "c"
    )
    assert source.classes == ["9", "10", "20"]
    assert len(source["train"]) == 3


def test_csv_with_paths_relative_to_it(make_folder: Make) -> None:
    root = make_folder({"files": 6})
    table = root / "labels.csv"
    rows = [f"files/{n:03d}.png,{'ab'[n % 2]},{'train' if n < 4 else 'test'}" for n in range(6)]
    table.write_text("\n".join(["file,class,split", *rows]))
    source = open_source(table)
    assert source.kind == "csv"
    assert source.classes == ["a", "b"]
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 4, "test": 2}
    assert decode_split(source["test"], PLAIN).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nfiles/000.png,a\nfiles/xxx.png,b\nfiles/001.png,a\nfiles/002.png,b", "xxx.png"),
        ("file,label\nfiles/000.png,a\nfiles/001.png,\n", "row 1 has no label"),
        ("file,label\nfiles/000.png\n", "line 2 does not have the columns"),
        ("file,label\n", "no rows below its header"),
        ("file,label\nfiles/000.png,a\nfiles/001.png,a\n", "1 class"),
        ("file,label\nfiles/000.png,a\nfiles/001.png,b\nfiles/002.png,b\n", "class 'a' has one example"),
        ("file,label,split\nfiles/000.png,a,train\nfiles/001.png,b,later\n", "'later'"),
        ("file,label,split\nfiles/000.png,a,test\nfiles/001.png,b,val\n", "no 'train'"),
    ],
)
def test_wrong_tables(make_folder: Make, text: str, message: str) -> None:
    root = make_folder({"files": 6})
    (root / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_source(root / "t.csv")


def test_webdataset(tmp_path: Path) -> None:
    shard = tmp_path / "train-000.tar"
    with tarfile.open(shard, "w") as tar:
        for n in range(8):
            for suffix, content in (("png", encoded(picture(n))), ("cls", str(n % 2).encode())):
                info = tarfile.TarInfo(f"{n:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    source = open_source(shard, cache_dir=tmp_path / "cache")
    assert (source.kind, source.classes) == ("webdataset", ["0", "1"])
    split = source["train"]
    row = int(split.rows[0])
    number = int(Path(split.row_name(row)).name.split(".")[0])
    assert (PLAIN.read(split.item(row)).permute(1, 2, 0).numpy() == np.asarray(picture(number))).all()
    assert source.describe().splits["test"].count == 2


def test_saved_data_set(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    data = datasets.Dataset.from_dict(
        {"image": [picture(n) for n in range(6)], "label": [0, 1, 0, 1, 0, 1]}, features=features
    )
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "valid": data.select([0, 1])}).save_to_disk(tmp_path / "two")
    assert open_source(tmp_path / "one").classes == ["x", "y"]
    source = open_source(tmp_path / "two")
    assert (source.kind, source.held_out, len(source["validation"])) == ("arrow", "validation", 2)
    (tmp_path / "two" / "train" / "state.json").unlink()
    with pytest.raises(DataError, match="cannot read the saved data set"):
        open_source(tmp_path / "two")


def test_saved_arrays_are_read_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    data = datasets.Dataset.from_dict({"image": pixels.tolist(), "label": [0, 1] * 3})
    data.save_to_disk(tmp_path / "arrays")
    source = open_source(tmp_path / "arrays")
    assert source.describe().channels == 1
    preprocess = ImagePreprocess(size=(5, 4), channels=1, mean=(0.5,), std=(0.5,))
    split = source["train"]
    assert (preprocess.read(split.item(0))[0].numpy() == np.asarray(split.dataset[0]["image"])).all()


def test_hub_name_offline() -> None:
    with pytest.raises(DataError, match=r"'someone/something' is no file or folder here.*Hub"):
        open_source("someone/something")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 0], "split 'train' row 2 has label 2, out of range: there are 2 classes"),
        ([0, 1, -1, 0], "split 'train' row 2 has label -1, out of range"),
        ([0, 1, None, 0], "split 'train' row 2 has no label"),
        ([0, 0, 0, 0], r"1 class \('x'\)"),
    ],
)
def test_wrong_class_labels(tmp_path: Path, labels: list[int | None], message: str) -> None:
    table = pa.table(
        {
            "image": [{"bytes": encoded(picture(n)), "path": None} for n in range(4)],
            "label": pa.array(labels, pa.int64()),
        }
    )
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    meta = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    pq.write_table(table.replace_schema_metadata(meta), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "t.parquet", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1, 0], "row 2 has the negative label -1"),
        ([0.0, 1.5, 1.0, 0.0], "row 1 has the label 1.5"),
        ([0, None, 1, 0], "row 1 has no label"),
    ],
)
def test_wrong_plain_labels(tmp_path: Path, labels: list[object], message: str) -> None:
    _parquet(tmp_path / "t.parquet", labels)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "t.parquet", cache_dir=tmp_path / "cache")


def test_class_that_is_only_held_out(make_folder: Make) -> None:
    root = make_folder({"train/a": 2, "train/b": 2, "test/c": 1})
    with pytest.raises(DataError, match=r"class 'c' appears in split 'test' \(row 0\) but not in 'train'"):
        open_source(root)


def test_wrong_places(tmp_path: Path, make_folder: Make) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty"):
        open_source(tmp_path / "empty")
    (tmp_path / "x.xyz").write_text("?")
    with pytest.raises(DataError, match=r"cannot tell what .* is; looked for .*Parquet|\.parquet"):
        open_source(tmp_path / "x.xyz")
    flat = make_folder({"flat": 2}) / "flat"
    with pytest.raises(DataError, match="2 files but no class sub-folders"):
        open_source(flat)
    with pytest.raises(DataError, match=r"1 class \('a'\)"):
        open_source(make_folder({"a": 3}, name="single"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"cannot read parquet data .*bad\.parquet"):
        open_source(tmp_path / "bad.parquet", cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match="on_corrupt must be"):
        open_source(None, on_corrupt="maybe")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="holdout must lie between"):
        open_source(make_folder({"a": 3, "b": 3}, name="h"), holdout=1.5)


def _spoil(root: Path) -> None:
    whole = (root / "train/a/000.png").read_bytes()
    (root / "train/a/000.png").write_bytes(whole[: len(whole) // 2])  # header fine, pixels cut
    (root / "train/b/001.png").write_bytes(b"")
    (root / "train/b/002.png").write_bytes(b"not an image at all")


def test_corrupt_images_are_refused_by_name(make_folder: Make) -> None:
    root = make_folder({"train/a": 4, "train/b": 4, "test/a": 1, "test/b": 1})
    _spoil(root)
    source = open_source(root)
    with pytest.raises(
        DataError, match=r"2 unreadable images: train/b/001.png, train/b/002.png.*leave them out"
    ):
        source.describe()
    with pytest.raises(DataError, match=r"'train' has 3 unreadable images: train/a/000.png"):
        decode_split(source["train"], PLAIN)


def test_corrupt_images_are_left_out_and_listed(make_folder: Make) -> None:
    root = make_folder({"train/a": 4, "train/b": 4, "test/a": 1, "test/b": 1})
    _spoil(root)
    source = open_source(root, on_corrupt="skip")
    name = source.fingerprint
    decoded = decode_split(source["train"], PLAIN)
    assert decoded.rows.tolist() == [1, 2, 3, 4, 7]
    assert decoded.labels.tolist() == [0, 0, 0, 1, 1]
    again = PLAIN.read(root / "train/b/003.png").permute(1, 2, 0)
    assert (decoded.images[4] == again).all()
    info = source.describe()
    assert info.corrupt == ["train/a/000.png", "train/b/001.png", "train/b/002.png"]
    assert info.splits["train"].per_class == {"a": 3, "b": 2}
    assert info.fingerprint == name
    assert any("3 unreadable" in line for line in info.lines())


def test_class_with_no_readable_image_is_refused(make_folder: Make) -> None:
    root = make_folder({"train/a": 4, "train/b": 1, "test/a": 1})
    (root / "train/b/000.png").write_bytes(b"")
    with pytest.raises(DataError, match="class 'b' has no readable training image"):
        open_source(root, on_corrupt="skip").describe()


def test_fingerprint_names_the_data_and_not_the_place(make_folder: Make, tmp_path: Path) -> None:
    root = make_folder({"train/a": 2, "train/b": 2, "test/a": 1})
    name = open_source(root).fingerprint
    shutil.copytree(root, tmp_path / "elsewhere")
    assert open_source(tmp_path / "elsewhere").fingerprint == name
    os.utime(root / "train/a/000.png", (1, 1))
    assert open_source(root).fingerprint == name

    file = root / "train/a/000.png"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1  # same size, one bit
    file.write_bytes(bytes(content))
    assert open_source(root).fingerprint != name
    content[-20] ^= 1
    file.write_bytes(bytes(content))
    assert open_source(root).fingerprint == name

    (root / "train/a/001.png").rename(root / "train/b/009.png")
    assert open_source(root).fingerprint != name


def test_fingerprint_of_parquet(tmp_path: Path) -> None:
    for place in ("one", "two"):
        _parquet(tmp_path / place / "train.parquet", [0, 1, 0, 1])
    _parquet(tmp_path / "three" / "train.parquet", [0, 1, 1, 0])
    names = [
        open_source(tmp_path / p, cache_dir=tmp_path / f"c{p}").fingerprint for p in ("one", "two", "three")
    ]
    assert names[0] == names[1] != names[2]


def test_a_new_kind_is_one_entry(make_folder: Make) -> None:
    kind = SourceKind(
        title="test kind",
        looks_like="the word twins",
        order=1,
        matches=lambda location: location == "twins",
        open=lambda location, cache, suffixes: Found(
            {"train": datasets.Dataset.from_dict({"image": ["a"] * 4, "label": [0, 1, 0, 1]})}, root=folder
        ),
    )
    folder = make_folder({".": 0})
    picture(0).save(folder / "a", format="PNG")
    SOURCES.add("twins", kind)
    try:
        assert open_source("twins").describe().title == "test kind"
    finally:
        SOURCES._items.pop("twins")


def test_nothing_on_stdout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _parquet(tmp_path / "train.parquet", [0, 1, 0, 1])
    open_source(tmp_path / "train.parquet", cache_dir=tmp_path / "cache").describe()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "%" not in captured.err


def test_hymenoptera(shared_data: Path) -> None:
    source = open_source(shared_data / "hymenoptera")
    info = source.describe()
    assert info.classes == ["ants", "bees"]
    assert (info.splits["train"].count, info.splits["validation"].count) == (244, 153)
    files = sorted((shared_data / "hymenoptera" / "train").glob("*/*.jp*g"))
    split = source["train"]
    assert [split.item(row) for row in split.rows] == files
    assert [info.classes[label] for label in split.labels] == [file.parent.name for file in files]
    assert "hymenoptera" in info.location


def test_cifar(shared_data: Path, tmp_path: Path) -> None:
    source = open_source(shared_data / "cifar10-jpeg", cache_dir=tmp_path)
    info = source.describe()
    assert (info.splits["train"].count, info.splits["test"].count) == (50_000, 10_000)
    assert info.image_sizes.uniform
    assert set(info.splits["test"].per_class.values()) == {1000}
    table = pq.read_table(shared_data / "cifar10-jpeg" / "test-00000-of-00001.parquet")
    assert source["test"].labels.tolist() == table["label"].to_pylist()
    preprocess = ImagePreprocess.from_info(info)
    assert (preprocess.size, preprocess.resize, preprocess.channels) == ((32, 32), "squash", 3)
