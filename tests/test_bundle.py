"""A bundle gives back what was put in, refuses what was tampered with, and runs nothing it holds."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import reskit
from reskit.bundle import FORMAT_VERSION, Bundle, BundleConfig
from reskit.data import ImagePreprocess
from reskit.errors import BundleError, OutputError
from reskit.files import sha256
from reskit.models import create_model
from reskit.tasks import Classify

LABELS = ["ant", "bee", "猫"]
FILES = ["README.md", "config.json", "model.safetensors", "samples.safetensors"]


def settled_model(seed: int = 0, name: str = "cifar_resnet8") -> nn.Module:
    """Return a network whose norms hold statistics of their own."""
    torch.manual_seed(seed)
    model = create_model(name, num_classes=3)
    model(torch.randn(16, 3, 16, 16))
    return model.eval()


def write(folder: Path, model: nn.Module | None = None, **values: Any) -> Bundle:
    preprocess = ImagePreprocess(size=(16, 12), channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    settings: dict[str, Any] = {
        "task": Classify(preprocess=preprocess, labels=LABELS),
        "model": model or settled_model(),
        "metrics": {"test": {"top1": 0.75, "ece": float("nan")}},
        "provenance": {"recipe": "small", "data": "somewhere", "seed": 3, "epochs": 2, "note": (1, 2)},
        "samples": torch.randint(
            0, 256, (6, 3, 16, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        ),
    }
    return Bundle.write(folder, **{**settings, **values})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bundles") / "written").path


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def alter(folder: Path, change: Callable[[dict[str, Any]], object], *, honest: bool = True) -> None:
    """Change config.json; put in the checksum that belongs to the change unless not `honest`."""
    file = folder / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    checksum = values.pop("checksum")
    change(values)
    if honest:
        checksum = BundleConfig.model_validate(values).checksum()
    file.write_text(json.dumps({**values, "checksum": checksum}), encoding="utf-8")


def replace(folder: Path, name: str, content: bytes) -> None:
    """Put other content in the place of a file, with the hash that belongs to it."""
    (folder / name).write_bytes(content)
    alter(folder, lambda values: values["files"].update({name: hashlib.sha256(content).hexdigest()}))


def refusal(folder: str | Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# Round trip.


def test_what_is_written_is_read(tmp_path: Path) -> None:
    model = settled_model(seed=5)
    bundle = write(tmp_path / "deep" / "bundle", model)
    inputs = torch.randint(0, 256, (4, 3, 16, 12), dtype=torch.uint8)
    statistics = [torch.tensor(values)[:, None, None] for values in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))]
    with torch.no_grad():
        expected = model((inputs / 255 - statistics[0]) / statistics[1])
        found = reskit.load(bundle.path).model(bundle.task.inputs({"image": inputs}))
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    again = reskit.load(str(bundle.path))
    assert not again.model.training
    assert again.task.labels == LABELS
    assert again.task.config() == bundle.task.config()
    assert again.config == bundle.config
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in model.state_dict().items())


def test_its_files_and_nothing_else(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == FILES
    state = load_file(written / "model.safetensors")
    assert state.keys() == settled_model().state_dict().keys()
    config = json.loads((written / "config.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert config["format"] == FORMAT_VERSION
    assert config["library"] == f"reskit {reskit.__version__}"
    assert config["metrics"]["test"] == {"top1": 0.75, "ece": None}
    assert config["provenance"].items() > {"recipe": "small", "seed": 3, "note": [1, 2]}.items()
    assert {"versions", "machine", "git_commit"} <= config["provenance"].keys()
    assert config["task"]["labels"] == LABELS
    assert config["architecture"] == {"name": "cifar_resnet8", "num_classes": 3, "in_channels": 3}
    assert config["files"] == {name: sha256(written / name) for name in FILES if name.endswith("safetensors")}


def test_the_card_says_what_it_is(written: Path) -> None:
    card = (written / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: reskit\n")
    for words in (
        "# written",
        "`cifar_resnet8`",
        "Classes (3): ant, bee, 猫",
        "3 channels of 16 x 12 pixels",
        "recipe small, data somewhere, seed 3, epochs 2",
        "| test | top1 | 0.7500 |",
        'reskit.load("written")',
    ):
        assert words in card


def test_a_card_of_many_classes_is_cut(tmp_path: Path) -> None:
    task = Classify(preprocess=ImagePreprocess(size=(16, 12)), labels=[f"class{i:02d}" for i in range(30)])
    write(tmp_path / "b", create_model("cifar_resnet8", num_classes=30), task=task)
    card = (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    assert "Classes (30): " in card
    assert "class19, ..." in card
    assert "class20" not in card


def test_no_pickle_anywhere(written: Path) -> None:
    for file in written.rglob("*"):
        assert file.suffix in {".json", ".md", ".safetensors"}
        content = file.read_bytes()
        assert content[:2] not in {b"PK", b"\x80\x02", b"\x80\x04"}  # torch.save's archive, and pickle


def test_a_trained_bundle_holds_what_it_is_made_of(digits_run: Any) -> None:
    bundle = reskit.load(digits_run.bundle)
    assert bundle.verify() < 1e-4
    assert bundle.samples["samples"].shape == (256, 1, 8, 8)
    assert bundle.config.metrics == {digits_run.split: pytest.approx(digits_run.metrics)}
    settings = reskit.load_recipe(bundle.config.provenance["settings"])
    assert settings == reskit.load_recipe(digits_run.run / "recipe.yaml")
    assert len(bundle.config.provenance["fingerprint"]) == 64


def test_a_new_bundle_takes_the_place_of_the_old(tmp_path: Path) -> None:
    first = write(tmp_path / "b")
    (first.path / "stray").write_text("of the old one")
    second = write(tmp_path / "b", settled_model(seed=9))
    assert sorted(path.name for path in second.path.iterdir()) == FILES
    assert list(tmp_path.iterdir()) == [second.path]
    assert not torch.equal(second.model.head.weight, first.model.head.weight)  # type: ignore[operator]


@pytest.mark.parametrize("place", ["reskit.bundle.save_file", "pathlib.Path.write_text", "os.fsync"])
def test_a_full_disk_leaves_the_old_bundle(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "b")
    before = {name: sha256(tmp_path / "b" / name) for name in FILES}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(OutputError, match="No space left on device"):
            write(tmp_path / "b", settled_model(seed=9))
    assert {name: sha256(tmp_path / "b" / name) for name in FILES} == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    Bundle.load(tmp_path / "b").verify()


def test_a_file_is_not_overwritten_by_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("mine")
    with pytest.raises(OutputError, match="a file of that name is there"):
        write(tmp_path / "b")
    assert (tmp_path / "b").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


# Golden samples.


def test_verify_passes_and_notices_a_changed_network(copy: Path) -> None:
    bundle = Bundle.load(copy)
    assert bundle.verify() <= 1e-5
    assert bundle.samples["golden.outputs"].shape == (4, 3)
    with torch.no_grad():
        bundle.model.head.bias += 0.01  # type: ignore[operator, union-attr]
    with pytest.raises(BundleError, match=r"golden samples differ by 0\.01 "):
        bundle.verify()
    with torch.no_grad():
        bundle.model.head.bias *= float("nan")  # type: ignore[operator, union-attr]
    with pytest.raises(BundleError, match="golden samples differ by nan"):
        bundle.verify()


def test_verify_notices_changed_preprocessing_and_weights_behind_a_good_hash(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    save_file({**state, "linear.bias": state["linear.bias"] + 1}, copy / "model.safetensors")
    replace(copy, "model.safetensors", (copy / "model.safetensors").read_bytes())
    with pytest.raises(BundleError, match="differ by 1 "):
        Bundle.load(copy).verify()
    save_file(state, copy / "model.safetensors")
    replace(copy, "model.safetensors", (copy / "model.safetensors").read_bytes())
    assert Bundle.load(copy).verify() <= 1e-5
    alter(copy, lambda values: values["task"]["preprocess"].update(mean=[0.0, 0.0, 0.0]))
    with pytest.raises(BundleError, match="golden samples differ"):
        Bundle.load(copy).verify()


# Damage.


def test_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, words in {
        "none": "does not exist",
        "file": "is not a folder",
        "empty": "has no config.json",
    }.items():
        assert refusal(tmp_path / name) == f"{tmp_path / name} is not a reskit bundle: it {words}"


@pytest.mark.parametrize("name", ["model.safetensors", "samples.safetensors"])
def test_a_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert refusal(copy) == f"bundle {copy}: {name} is missing; restore it or train again"


@pytest.mark.parametrize("name", ["model.safetensors", "samples.safetensors"])
@pytest.mark.parametrize("damage", ["one bit", "cut", "longer", "empty"])
def test_an_altered_file(copy: Path, name: str, damage: str) -> None:
    content = bytearray((copy / name).read_bytes())
    if damage == "one bit":
        content[-1] ^= 1
    (copy / name).write_bytes(
        {"cut": content[:-7], "longer": content + b"x", "empty": b""}.get(damage, content)
    )
    assert f"{name} was altered since it was written" in refusal(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["metrics"]["test"].update(top1=0.99),
        lambda values: values["provenance"].update(seed=4),
        lambda values: values["task"]["labels"].reverse(),
        lambda values: values["task"]["preprocess"].update(resize="crop"),
        lambda values: values.update(created="2000-01-01T00:00:00+00:00"),
        lambda values: values["files"].update({"model.safetensors": "0" * 64}),
    ],
)
def test_an_altered_config(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    alter(copy, change, honest=False)
    assert refusal(copy) == f"bundle {copy}: config.json was altered since it was written (checksum differs)"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b"{}",
        b'{"checksum": "x"}',
        b'{"format": 1}',
        bytes(range(256)),
        b'{"checksum": "x", "format": "new"}',
        b'{"checksum": "x", "format": null}',
        b'{"model_type": "resnet", "num_labels": 1000}',
        b"[" * 100_000,
    ],
    ids=lambda content: content[:30].decode("latin-1"),
)
def test_a_config_that_is_none(copy: Path, content: bytes) -> None:
    (copy / "config.json").write_bytes(content)
    assert refusal(copy).startswith(f"{copy / 'config.json'} is not the config.json of a reskit bundle (")


def test_a_cut_config(copy: Path) -> None:
    content = (copy / "config.json").read_bytes()
    (copy / "config.json").write_bytes(content[: len(content) // 2])
    assert "is not the config.json of a reskit bundle (JSONDecodeError" in refusal(copy)


def test_a_config_with_other_keys(copy: Path) -> None:
    text = json.dumps({"checksum": "x", "format": 1, "library": "other"})
    (copy / "config.json").write_text(text, encoding="utf-8")
    assert refusal(copy) == f"{copy / 'config.json'}: created: Field required"


def test_a_newer_format(copy: Path) -> None:
    alter(copy, lambda values: values.update(format=FORMAT_VERSION + 1), honest=False)
    expected = f"has format {FORMAT_VERSION + 1}, this reskit reads up to {FORMAT_VERSION}; upgrade reskit"
    assert expected in refusal(copy)


def test_weights_of_another_network_behind_a_good_hash(copy: Path) -> None:
    for name in ("cifar_resnet20", "cifar_preact_resnet110"):
        state = {k: v.contiguous() for k, v in create_model(name, num_classes=3).state_dict().items()}
        save_file(state, copy / "model.safetensors")
        replace(copy, "model.safetensors", (copy / "model.safetensors").read_bytes())
        assert f"bundle {copy} does not fit this version of reskit: " in refusal(copy)


def test_a_wider_head_behind_a_good_hash(copy: Path) -> None:
    alter(copy, lambda values: values["architecture"].update(num_classes=4))
    assert "size mismatch for linear.weight" in refusal(copy)


# Malice.


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (Path.touch, (self.place,))


def test_nothing_is_unpickled(copy: Path, tmp_path: Path) -> None:
    mark = tmp_path / "exploded"
    bomb = tmp_path / "bomb.pt"
    torch.save({"linear.bias": Bomb(mark)}, bomb)
    assert "is not a folder" in refusal(bomb)
    for content in (pickle.dumps(Bomb(mark)), bomb.read_bytes()):
        replace(copy, "model.safetensors", content)
        assert "does not fit this version of reskit: SafetensorError" in refusal(copy)
    alter(copy, lambda values: values["architecture"].update(weights=str(bomb)))
    assert "does not fit this version of reskit: WeightsError" in refusal(copy)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # it would have


@pytest.mark.parametrize(
    "architecture",
    [
        {"name": "os.system"},
        {"name": "../../etc/passwd"},
        {"name": None},
        {"name": ["cifar_resnet8"]},
        {},
        {"num_classes": 3},
        {"name": "cifar_resnet8", "num_classes": "three"},
        {"name": "cifar_resnet8", "num_classes": -1},
        {"name": "cifar_resnet8", "num_classes": 10**30},
        {"name": "cifar_resnet8", "num_classes": 3, "in_channels": 0},
        {"name": "cifar_resnet8", "num_classes": 3, "depths": []},
        {"name": "cifar_resnet8", "num_classes": 3, "depths": "abc"},
        {"name": "cifar_resnet8", "num_classes": 3, "__class__": "x"},
        {"name": "cifar_resnet8", "num_classes": 3, "build": "x"},
    ],
)
def test_a_hostile_architecture(copy: Path, architecture: dict[str, Any]) -> None:
    alter(copy, lambda values: values.update(architecture=architecture))
    assert f"bundle {copy} does not fit this version of reskit: " in refusal(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "pickle"},
        {"name": "__init__"},
        {"name": None},
        {"name": {}},
        {"labels": 5},
        {"labels": None},
        {"preprocess": {}},
        {"preprocess": {"size": [16, 12], "reader": "os.system"}},
        {"preprocess": None},
    ],
)
def test_a_hostile_task(copy: Path, change: dict[str, Any]) -> None:
    alter(copy, lambda values: values["task"].update(change))
    assert f"bundle {copy} does not fit this version of reskit: " in refusal(copy)


def test_a_config_that_names_no_hashes(copy: Path) -> None:
    alter(copy, lambda values: values.update(files={}))
    assert "model.safetensors was altered" in refusal(copy)


def test_a_config_that_names_files_elsewhere(copy: Path) -> None:
    alter(copy, lambda values: values["files"].update({"../../etc/passwd": "0" * 64}))
    assert Bundle.load(copy).verify() <= 1e-5  # only the bundle's own files are ever looked at
