"""Whatever a user gets wrong: exit 1, one line that says what, where and what to do, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reskit.bundle import BundleConfig

SETTINGS = (
    "model.name=cifar_resnet8",
    "preprocess={size: 8, resize: squash, crop_fraction: 1.0}",
    "augment.random_resized_crop=null",
    "training.epochs=1",
    "training.batch_size=4",
    "runtime.precision=fp32",
    "runtime.layout=nchw",
)


def pictures(root: Path, counts: Mapping[str, int], mode: str = "RGB") -> Path:
    """Write images of noise, ``{"train/cat": 3}``, as an image folder."""
    generator = np.random.default_rng(0)
    shape = (12, 10) if mode == "L" else (12, 10, 3)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    return root


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("good") / "pets", {"cat": 8, "dog": 8})


@pytest.fixture
def refused(cli: Callable[..., Any]) -> Callable[..., str]:
    """Run a command that must fail; return its error line."""

    def run(*arguments: object, progress: bool = False) -> str:
        ran = cli(*arguments)
        assert (ran.code, ran.out) == (1, ""), ran
        *before, line = ran.err.splitlines()
        assert line.startswith("error: ")
        assert progress or not before
        assert not any(word in text for text in before for word in ("error:", "Traceback", "Warning"))
        return str(line.removeprefix("error: "))

    return run


@pytest.fixture
def untrained(refused: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """Train in a way that must fail before anything is written; return the error line."""

    def run(*arguments: object, sets: tuple[str, ...] = (), recipe: str = "imagefolder") -> str:
        options = [word for value in (*SETTINGS, *sets) for word in ("--set", value)]
        before = everything(tmp_path)
        line = refused("train", recipe, "--out", tmp_path / "run", *options, *arguments, progress=True)
        assert everything(tmp_path) == before
        assert not (tmp_path / "run").exists()
        return line

    return run


# The recipe.


def test_an_unknown_recipe(refused: Callable[..., str]) -> None:
    line = refused("train", "digit-resnet8")
    known = "'digits-resnet8' or 'imagenet-resnet50' or 'digits-vae'"
    assert line == f"unknown recipe 'digit-resnet8'; did you mean {known}?"


def test_no_recipe_at_all(refused: Callable[..., str]) -> None:
    assert refused("train") == "name a recipe; see `reskit recipes`"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.epoch=3", "recipe 'digits-resnet8': unknown key 'training.epoch'; did you mean 'epochs'?"),
        ("training.epochs=few", "training.epochs: Input should be a valid integer"),
        ("training.epochs", "override 'training.epochs' is not of the form key.path=value"),
        ("training.optimizer.name=lion", "training.optimizer.name: Input should be 'sgd', 'adam'"),
    ],
)
def test_a_wrong_setting(refused: Callable[..., str], setting: str, words: str) -> None:
    assert words in refused("train", "digits-resnet8", "--set", setting)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.name=resnet19", "unknown model 'resnet19'; did you mean 'resnet18'"),
        (
            "model.arguments={dephts: [1]}",
            "model 'cifar_resnet8' takes no argument 'dephts'; did you mean 'depths'?",
        ),
        ("model.arguments={depths: [0]}", "depths is 0: give a whole number of at least 1"),
        ("model.weights=none.pt", "there is no weights file at none.pt"),
        ("task=classfy", "unknown task 'classfy'; did you mean 'classify'?"),
        ("data.image_column=photo", "no column 'photo' for the image; known: file, label"),
        ("data.label_column=klass", "no column 'klass' for the label; known: label"),
        ("training.batch_size=400", "training.batch_size 400 is more than the 12 training examples"),
        ("training.keep=best", "data.validation=0.1"),
        ("training.patience=3", "data.validation=0.1"),
    ],
)
def test_a_setting_that_does_not_fit_the_data_or_the_network(
    untrained: Callable[..., str], good: Path, setting: str, words: str
) -> None:
    assert words in untrained("--data", good, sets=(setting,))


def test_imagenets_statistics_on_grey_images(untrained: Callable[..., str], tmp_path: Path) -> None:
    grey = pictures(tmp_path / "grey", {"a": 8, "b": 8}, mode="L")
    line = untrained("--data", grey, sets=("preprocess.statistics=imagenet",))
    assert line == "preprocess.statistics imagenet is for 3 channels, these images have 1"


def test_fp16_on_a_cpu(refused: Callable[..., str], good: Path, tmp_path: Path) -> None:
    options = [word for value in (*SETTINGS, "runtime.precision=fp16") for word in ("--set", value)]
    options += ["--set", "runtime.device=cpu", "--data", str(good), "--out", str(tmp_path / "run")]
    line = refused("train", "imagefolder", *options, progress=True)
    assert line == "runtime.precision fp16 needs a GPU; on a CPU use bf16, fp32 or auto"


# The data.


def test_data_that_is_not_there(untrained: Callable[..., str], tmp_path: Path) -> None:
    assert untrained("--data", tmp_path / "pest") == f"no such file or folder: {tmp_path / 'pest'}"


def test_an_empty_folder(untrained: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = untrained("--data", tmp_path / "empty")
    assert line == f"{tmp_path / 'empty'} is empty: expected one sub-folder a class with files in it"


def test_images_without_class_folders(untrained: Callable[..., str], tmp_path: Path) -> None:
    flat = pictures(tmp_path, {"flat": 3}) / "flat"
    assert f"{flat} holds 3 files but no class sub-folders: put each class" in untrained("--data", flat)


def test_one_class(untrained: Callable[..., str], tmp_path: Path) -> None:
    one = pictures(tmp_path / "one", {"cat": 6})
    assert "the training examples have 1 class ('cat'): at least two are needed" in untrained("--data", one)


def test_a_class_that_is_only_tested(untrained: Callable[..., str], tmp_path: Path) -> None:
    counts = {"train/cat": 4, "train/dog": 4, "test/cat": 2, "test/dog": 2, "test/emu": 1}
    line = untrained("--data", pictures(tmp_path / "pets", counts))
    assert "class 'emu' appears in split 'test'" in line
    assert "but not in 'train'" in line
    assert "add training examples or remove it" in line


@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_a_corrupt_image_is_refused(untrained: Callable[..., str], tmp_path: Path, damage: str) -> None:
    root = pictures(tmp_path / "pets", {"cat": 8, "dog": 8})
    image = root / "dog" / "3.png"
    image.write_bytes({"text": b"not an image", "cut": image.read_bytes()[:-60], "empty": b""}[damage])
    line = untrained("--data", root)
    assert "1 unreadable image: dog/3.png (" in line
    assert "leave them out: --set data.on_corrupt=skip in train, --skip-corrupt in evaluate" in line


def test_a_corrupt_image_is_skipped_when_asked(cli: Callable[..., Any], tmp_path: Path) -> None:
    root = pictures(tmp_path / "pets", {"train/cat": 6, "train/dog": 6, "test/cat": 4, "test/dog": 4})
    (root / "train" / "dog" / "3.png").write_bytes(b"not an image")
    (root / "test" / "cat" / "1.png").write_bytes((root / "test" / "cat" / "1.png").read_bytes()[:-60])
    options = [word for value in (*SETTINGS, "data.on_corrupt=skip") for word in ("--set", value)]
    ran = cli("train", "imagefolder", "--data", root, "--out", tmp_path / "run", *options, "--json")
    assert ran.code == 0, ran
    assert "unreadable images left out: train/dog/3.png" in ran.err
    bundle = json.loads(ran.out)["bundle"]
    kept = json.loads((Path(bundle) / "config.json").read_text(encoding="utf-8"))["provenance"]["counts"]
    assert kept["train"] == 11
    line = cli("evaluate", bundle, "--data", root).err
    assert "unreadable image" in line
    ran = cli("evaluate", bundle, "--data", root, "--skip-corrupt", "--json")
    assert json.loads(ran.out)["count"] == 7


def test_labels_out_of_range(
    untrained: Callable[..., str], good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path.parent / "cache")
    images = [{"bytes": (good / "cat" / f"{i}.png").read_bytes(), "path": None} for i in range(4)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    told = json.dumps({"info": {"features": features.to_dict()}})
    table = pa.table({"image": images, "label": [0, 1, 2, 0]}).replace_schema_metadata({"huggingface": told})
    pq.write_table(table, tmp_path / "pets.parquet")
    line = untrained("--data", tmp_path / "pets.parquet")
    assert line == "split 'train' row 2 has label 2, out of range: there are 2 classes, from 0"


def test_a_table_that_names_an_image_that_is_not_there(untrained: Callable[..., str], tmp_path: Path) -> None:
    pictures(tmp_path, {"cat": 2, "dog": 2})
    rows = ["image,label", "cat/0.png,cat", "cat/9.png,cat", "dog/0.png,dog", "dog/1.png,dog"]
    (tmp_path / "pets.csv").write_text("\n".join(rows))
    line = untrained("--data", tmp_path / "pets.csv")
    assert "names the image 'cat/9.png', which is not there" in line
    assert str(tmp_path) in line


# The place to write.


def test_resuming_without_a_folder(refused: Callable[..., str]) -> None:
    line = refused("train", "digits-resnet8", "--resume")
    assert line == "resuming needs the run's folder: --out DIR --resume"


def test_resuming_what_never_began(refused: Callable[..., str], tmp_path: Path) -> None:
    line = refused("train", "--resume", "--out", tmp_path / "none")
    assert line == f"nothing to resume in {tmp_path / 'none'}: no recipe.yaml there"


@pytest.mark.parametrize("stranger", ["a run", "a file in it", "a file"])
def test_a_place_in_use_is_left_alone(
    refused: Callable[..., str], digits_run: Any, tmp_path: Path, stranger: str
) -> None:
    place = digits_run.run if stranger == "a run" else tmp_path / "place"
    if stranger == "a file in it":
        place.mkdir()
        (place / "thesis.txt").write_text("mine")
    elif stranger == "a file":
        place.write_text("mine")
    before = everything(place.parent)
    line = refused("train", "digits-resnet8", "--out", place)
    assert f"{place} is {'a file' if stranger == 'a file' else 'not empty'}" in line
    assert "choose another --out" in line
    assert everything(place.parent) == before


def test_resuming_with_other_settings(refused: Callable[..., str], digits_run: Any) -> None:
    before = everything(digits_run.run)
    line = refused("train", "--resume", "--out", digits_run.run, "--set", "training.epochs=3")
    assert "leave out --set, --data and --weights" in line
    line = refused("train", "digits-resnet8", "--resume", "--out", digits_run.run)
    assert "recipe.yaml differs from what is asked in training, runtime" in line
    assert everything(digits_run.run) == before


def test_output_below_a_file(
    refused: Callable[..., str], digits_run: Any, good: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    place = tmp_path / "file" / "below"
    image = good / "cat" / "0.png"
    for command in (
        ["train", "digits-resnet8", "--out", place],
        ["evaluate", digits_run.bundle, "--out", place],
        ["predict", digits_run.bundle, image, "--out", place / "p.csv"],
        ["predict", digits_run.bundle, image, "--out", place / "p.parquet"],
    ):
        line = refused(*command, progress=command[0] == "train")
        assert line.startswith(f"cannot write {place}")
        assert line.endswith("; free space or choose another --out")
    assert everything(tmp_path) == {str(tmp_path / "file"): b"mine"}


def test_no_space_left(
    refused: Callable[..., str], digits_run: Any, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.csv").write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    for command in (
        ["train", "digits-resnet8", "--out", tmp_path / "run"],
        ["evaluate", digits_run.bundle, "--out", tmp_path / "report"],
        ["predict", digits_run.bundle, good / "cat", "--out", tmp_path / "p.csv"],
    ):
        line = refused(*command, progress=command[0] == "train")
        assert ": No space left on device; free space or choose another --out" in line
    assert (tmp_path / "p.csv").read_text() == "old"
    assert not list(tmp_path.rglob(".*"))


# Bundles.


@pytest.fixture
def bundle(digits_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_run.bundle, tmp_path / "bundle"))


def broken(bundle: Path, damage: str) -> str:
    """Damage a bundle; return the words that must be said of it."""
    weights, config = bundle / "model.safetensors", bundle / "config.json"
    match damage:
        case "no folder":
            shutil.rmtree(bundle)
            return f"{bundle} is not a reskit bundle: it does not exist"
        case "no weights":
            weights.unlink()
            return f"bundle {bundle}: model.safetensors is missing; restore it or train again"
        case "no config":
            config.unlink()
            return f"{bundle} is not a reskit bundle: it has no config.json"
        case "altered weights":
            weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
            return "model.safetensors was altered since it was written"
        case "altered config":
            config.write_text(config.read_text(encoding="utf-8").replace('"top1": 0.', '"top1": 1.'), "utf-8")
            return "config.json was altered since it was written"
        case "cut config":
            config.write_bytes(config.read_bytes()[:100])
            return "is not the config.json of a reskit bundle"
        case _:
            values = json.loads(config.read_text(encoding="utf-8"))
            values["architecture"]["name"] = "cifar_resnet20"
            del values["checksum"]
            checksum = BundleConfig.model_validate(values).checksum()
            config.write_text(json.dumps({**values, "checksum": checksum}), encoding="utf-8")
            return "does not fit this version of reskit"


@pytest.mark.parametrize(
    "damage",
    [
        "no folder",
        "no weights",
        "no config",
        "altered weights",
        "altered config",
        "cut config",
        "another network",
    ],
)
def test_a_damaged_bundle(refused: Callable[..., str], bundle: Path, good: Path, damage: str) -> None:
    words = broken(bundle, damage)
    assert words in refused("evaluate", bundle)
    assert words in refused("predict", bundle, good / "cat" / "0.png")


def test_a_file_that_is_no_bundle(refused: Callable[..., str], tmp_path: Path, good: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"\x80\x04.")
    for verb in ("evaluate", "predict"):
        line = refused(verb, file, *([good] if verb == "predict" else []))
        assert line == f"{file} is not a reskit bundle: it is not a folder"


def test_evaluating_on_other_classes(refused: Callable[..., str], digits_run: Any, good: Path) -> None:
    line = refused("evaluate", digits_run.bundle, "--data", good)
    assert line == (f"{good} has the classes cat, dog, the bundle was trained on 0, 1, 2, 3, 4, ... (10)")


@pytest.mark.parametrize(
    ("split", "ending"),
    [("tst", "did you mean 'test'?"), ("validation", "known: test, train"), ("x", "known: ")],
)
def test_an_unknown_split(refused: Callable[..., str], digits_run: Any, split: str, ending: str) -> None:
    assert f"digits has no split {split!r}; {ending}" in refused(
        "evaluate", digits_run.bundle, "--split", split
    )


def test_predicting_for_nothing(refused: Callable[..., str], digits_run: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nothing = f"no file matches '{tmp_path}/*.png'"
    assert refused("predict", digits_run.bundle, tmp_path / "*.png") == nothing
    assert (
        refused("predict", digits_run.bundle, tmp_path / "empty")
        == f"{tmp_path / 'empty'} holds no image files"
    )
    assert refused("predict", digits_run.bundle, "-") == "there are no inputs: the list is empty"


def test_an_unknown_kind_of_table_is_refused_before_the_work(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    line = refused("predict", tmp_path / "no bundle", tmp_path, "--out", tmp_path / "p.xlsx")
    assert line == (
        f"cannot tell a format from '{tmp_path / 'p.xlsx'}': end it in .csv, .json, .jsonl, .parquet"
    )


def test_an_unreadable_image_among_others_costs_only_its_row(
    cli: Callable[..., Any], digits_run: Any, good: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    ran = cli("predict", digits_run.bundle, good / "cat" / "0.png", tmp_path / "bad.png", "--json")
    rows = json.loads(ran.out)["predictions"]
    assert ran.code == 0
    assert rows[0]["error"] is None
    assert str(tmp_path / "bad.png") in rows[1]["error"]


def test_a_name_too_long_for_the_system(refused: Callable[..., str]) -> None:
    assert "File name too long" in refused("predict", "x" * 5000, "a.png")
