"""A recipe is read strictly: whatever is wrong in one is said with its place and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reskit.config import Recipe
from reskit.errors import ConfigError, UnknownNameError
from reskit.recipes import load_recipe

BASE = "digits-resnet8"
SMALL = {"name": "small", "model": {"name": "cifar_resnet8"}}


def refusal(*overrides: str, recipe: Any = BASE) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# Files.


def test_a_file_extends_packaged_recipes_and_files_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", f"extends: {BASE}\nname: base\ntraining: {{epochs: 7}}\n")
    leaf = write(tmp_path / "sub" / "leaf.yaml", "extends: ../base.yaml\nname: leaf\ntraining: {seed: 3}\n")
    packaged, recipe = load_recipe(BASE), load_recipe(leaf)
    assert (recipe.name, recipe.training.epochs, recipe.training.seed) == ("leaf", 7, 3)
    assert recipe.training.optimizer == packaged.training.optimizer
    assert recipe.model == packaged.model


def test_a_mapping_is_a_recipe_too_and_is_left_as_it_was() -> None:
    values = {"extends": BASE, "name": "mine", "training": {"epochs": 2}}
    recipe = load_recipe(values, ["training.epochs=3"])
    assert (recipe.name, recipe.training.epochs, recipe.model.name) == ("mine", 3, "cifar_resnet8")
    assert values == {"extends": BASE, "name": "mine", "training": {"epochs": 2}}


def test_a_circle_of_extends_is_named(tmp_path: Path) -> None:
    a = write(tmp_path / "a.yaml", "extends: sub/b.yaml\nname: a\n")
    write(tmp_path / "sub" / "b.yaml", "extends: ../a.yaml\nname: b\n")
    assert "circle" in refusal(recipe=a)
    alone = write(tmp_path / "alone.yaml", "extends: alone.yaml\nname: alone\n")
    assert "circle at" in refusal(recipe=alone)


@pytest.mark.parametrize("base", ["[a, b]", "5", "{name: x}"])
def test_extends_is_one_name(base: str, tmp_path: Path) -> None:
    file = write(tmp_path / "r.yaml", f"extends: {base}\nname: r\n")
    assert "`extends` must be the name or path of one recipe" in refusal(recipe=file)


def test_extending_what_is_not_there_suggests(tmp_path: Path) -> None:
    file = write(tmp_path / "r.yaml", "extends: digits-resnet9\nname: r\n")
    with pytest.raises(UnknownNameError, match="did you mean 'digits-resnet8'"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"training: {epochs: 3", ["r.yaml", "not valid YAML", "line 1"]),
        (b"a: b: c\n", ["r.yaml", "not valid YAML", "line 1"]),
        (b"- a\n- b\n", ["r.yaml", "must be a mapping of keys, not list"]),
        (b"", ["r.yaml", "must be a mapping of keys, not NoneType"]),
        (b"just words\n", ["r.yaml", "not str"]),
        (bytes(range(128, 256)) * 4, ["r.yaml", "cannot be read", "utf-8"]),
        (b"\x00\x01\x02", ["r.yaml", "not valid YAML"]),
        (b"name: 2024-99-99\n", ["r.yaml", "not valid YAML", "month must be in 1..12"]),
        (b"name: a\nmodel: {name: x}\nname: b\n", ["not valid YAML", "'name' is there twice", "line 3"]),
        (b"model: {name: x, name: y}\n", ["'name' is there twice"]),
        (b"!!python/object/apply:os.system ['true']\n", ["not valid YAML", "could not determine"]),
        (b"name: x\n", ["model is missing"]),
        (b"1: 2\nname: x\nmodel: {name: y}\n", ["Keys should be strings"]),
    ],
)
def test_a_bad_file_says_what_is_bad(content: bytes, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    message = refusal(recipe=file)
    assert all(word in message for word in words), message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refusal(recipe=tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "directory" in refusal(recipe=tmp_path / "folder.yaml")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("digits-resnet", "did you mean 'digits-resnet8'"),
        ("cifar10_resnet20", "'cifar10-resnet20'"),
        ("qqq", "known: audio, cifar10-"),
    ],
)
def test_an_unknown_name_suggests(name: str, suggestion: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_recipe(name)
    assert f"unknown recipe '{name}'" in str(caught.value)
    assert suggestion in str(caught.value)


# Keys.


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("trianing", "'training'"),
        ("training.epoch", "'epochs'"),
        ("training.optimiser", "'optimizer'"),
        ("training.optimizer.learning_rat", "known: betas, lr"),
        ("training.optimizer.momentun", "'momentum'"),
        ("training.schedule.warmup", "'warmup_epochs'"),
        ("augment.flips", "'flip'"),
        ("data.image_col", "'image_column'"),
        ("model.nam", "'name'"),
        ("preprocess.sise", "'size'"),
        ("runtime.presicion", "'precision'"),
        ("training.epochs_.deeper.still", "'epochs'"),
    ],
)
def test_an_unknown_key_is_named_whole_with_the_nearest(key: str, suggestion: str) -> None:
    message = refusal(f"{key}=1")
    known = key.removesuffix(".deeper.still")
    assert f"recipe '{BASE}': unknown key '{known}'; " in message
    assert suggestion in message


def test_every_part_is_strict_and_frozen() -> None:
    recipe = load_recipe(BASE)
    parts = [recipe, *(value for _, value in recipe if hasattr(value, "model_fields_set"))]
    parts += [recipe.training.optimizer, recipe.training.schedule]
    assert len(parts) == 11
    assert all(part.model_config["extra"] == "forbid" and part.model_config["frozen"] for part in parts)


# Overrides.


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("training.epochs=5", lambda r: r.training.epochs, 5),
        ("training.optimizer.lr=1e-4", lambda r: r.training.optimizer.lr, 1e-4),
        ("training.optimizer.lr=3E+0", lambda r: r.training.optimizer.lr, 3.0),
        ("model.arguments.dropout=1e-4", lambda r: r.model.arguments["dropout"], 1e-4),
        ("model.arguments={depths: [1, 2], residual: false}", lambda r: r.model.arguments["depths"], [1, 2]),
        ("training.schedule.milestones=[10, 20.5]", lambda r: r.training.schedule.milestones, (10.0, 20.5)),
        ("training.clip_norm=null", lambda r: r.training.clip_norm, None),
        ("training.clip_norm=", lambda r: r.training.clip_norm, None),
        ("preprocess.size=24", lambda r: r.preprocess.size, (24, 24)),
        ("preprocess.size=[8, 16]", lambda r: r.preprocess.size, (8, 16)),
        ("preprocess.size=null", lambda r: r.preprocess.size, None),
        ("augment.flip=true", lambda r: r.augment.flip, 0.5),
        ("data.path=a=b", lambda r: r.data.path, "a=b"),
        ("data.path='x: y'", lambda r: r.data.path, "x: y"),
        ("description=1e-4 of it", lambda r: r.description, "1e-4 of it"),
    ],
)
def test_an_override_is_yaml(override: str, read: Any, value: Any) -> None:
    found = read(load_recipe(BASE, [override]))
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_wins_and_the_rest_stays() -> None:
    recipe = load_recipe(BASE, ["training.epochs=5", "training.seed=2", "training.epochs=6"])
    training = load_recipe(BASE).training.model_copy(update={"epochs": 6, "seed": 2})
    assert recipe == load_recipe(BASE).model_copy(update={"training": training})


@pytest.mark.parametrize(
    "override", ["training.epochs", "", "=5", ".epochs=5", "training.=5", "training..epochs=5"]
)
def test_a_malformed_override_shows_the_form(override: str) -> None:
    assert refusal(override) == (
        f"override {override!r} is not of the form key.path=value, as in training.epochs=5"
    )


@pytest.mark.parametrize("value", ["{", "[1, 2", "'a", "@x", "2024-99-99", "{a: 1, a: 2}", "[" * 400])
def test_an_override_that_is_not_yaml_is_quoted_in_short(value: str) -> None:
    message = refusal(f"training.epochs={value}")
    assert message.startswith("the value of override ")
    assert "training.epochs=" in message
    assert "is not valid YAML" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs=0", ["training.epochs", "greater than or equal to 1", "got 0"]),
        ("training.epochs=2.5", ["training.epochs", "integer", "got 2.5"]),
        ("training.epochs=many", ["training.epochs", "integer", "got 'many'"]),
        ("training.epochs=null", ["training.epochs", "integer", "got None"]),
        ("training=5", ["training:", "dictionary", "got 5"]),
        ("training=null", ["training:", "got None"]),
        ("model=resnet18", ["model:", "got 'resnet18'"]),
        (
            "model.arguments={num_classes: 5, depths: [1]}",
            ["model.arguments: num_classes cannot be set here"],
        ),
        ("model.arguments.weights=x", ["model.arguments: weights cannot be set here"]),
        ("training.optimizer.lr=0", ["training.optimizer.lr", "greater than 0"]),
        ("training.optimizer.lr=.inf", ["training.optimizer.lr", "finite"]),
        ("training.optimizer.lr=.nan", ["training.optimizer.lr"]),
        ("training.optimizer.momentum=1", ["training.optimizer.momentum", "less than 1"]),
        ("training.optimizer.betas=[2, 0]", ["training.optimizer.betas.0", "less than 1"]),
        ("training.optimizer.betas=[0.9]", ["training.optimizer.betas.1 is missing"]),
        ("training.optimizer.name=adamax", ["training.optimizer.name", "'sgd', 'adam', 'adamw' or 'muon'"]),
        ("training.schedule.milestones=[1, x]", ["training.schedule.milestones.1", "got 'x'"]),
        ("training.accumulate=3", ["training: batch_size 64 is not a multiple of accumulate 3"]),
        ("training.seed=-1", ["training.seed"]),
        ("training.seed=1048576", ["training.seed", "less than 1048576"]),
        ("training.keep=first", ["training.keep", "'last' or 'best'"]),
        ("training.ema_decay=1", ["training.ema_decay"]),
        ("training.label_smoothing=1", ["training.label_smoothing"]),
        ("preprocess.size=0", ["preprocess.size.0", "greater than or equal to 1"]),
        ("preprocess.size=[8]", ["preprocess.size.1 is missing"]),
        ("preprocess.size=[8, 8, 8]", ["preprocess.size", "at most 2"]),
        ("preprocess.crop_fraction=1.5", ["preprocess.crop_fraction"]),
        ("augment.flip=1.5", ["augment.flip", "less than or equal to 1"]),
        ("augment.random_resized_crop=[0.9, 0.1]", ["augment: random_resized_crop must be a rising pair"]),
        ("augment.random_resized_crop=[0.5, 1.5]", ["augment: random_resized_crop takes at most the whole"]),
        ("data.holdout=1", ["data.holdout", "less than 1"]),
        ("data.on_corrupt=ignore", ["data.on_corrupt", "'refuse' or 'skip'"]),
        ("data.workers=-1", ["data.workers"]),
        ("runtime.precision=fp8", ["runtime.precision", "'fp16'"]),
        ("runtime.device=gpu", ["runtime.device", "'auto' or 'cpu'"]),
        ("runtime.threads=0", ["runtime.threads"]),
        ("name=[a]", ["name", "string"]),
    ],
)
def test_a_wrong_value_is_named_with_its_key(override: str, words: list[str]) -> None:
    message = refusal(override)
    assert message.startswith(f"recipe '{BASE}': ")
    assert all(word in message for word in words), message


def test_warmup_must_leave_something() -> None:
    overrides = ["training.schedule.name=cosine", "training.schedule.warmup_epochs=30"]
    assert "training: warmup_epochs 30 leaves nothing of 30 epochs" in refusal(*overrides)


def test_several_faults_are_told_at_once_but_not_all() -> None:
    message = refusal("training.epochs=0", "training.bath_size=1", "augment.flip=2", "runtime.threads=0")
    assert message.count(";") == 3  # three faults, and one suggestion
    assert "augment.flip" in message


def test_a_long_wrong_value_is_cut() -> None:
    assert len(refusal(f"training.epochs={'x' * 10_000}")) < 300


def test_defaults_are_themselves_valid() -> None:
    recipe = load_recipe(SMALL)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
