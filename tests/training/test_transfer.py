"""Transfer: which layers learn, how fast, from which weights, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import reskit
from reskit.config import TransferConfig
from reskit.errors import ConfigError, WeightsError
from reskit.files import sha256
from reskit.models import MODELS, create_model
from reskit.recipes import load_recipe
from reskit.training.callbacks import Reporter
from reskit.training.transfer import Transfer, settle_weights

FIXED = (
    "runtime={precision: fp32, layout: channels_last}",
    "training={epochs: 1, label_smoothing: 0, schedule: {warmup_epochs: 0}}",
    "augment={random_resized_crop: null, flip: 0}",  # of digits neither leaves what they are
)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model("cifar_resnet8", in_channels=1)


def learning(model: torch.nn.Module) -> set[str]:
    return {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}


def resting(model: torch.nn.Module) -> set[str]:
    return {name.split(".")[0] for name, m in model.named_modules() if name and not m.training}


def tune(out: Path, weights: Any, *overrides: str, recipe: Any = "finetune") -> Any:
    return reskit.train(recipe, weights=weights, out=out, overrides=[*FIXED, *overrides])


def parameters(bundle: Path) -> dict[str, torch.Tensor]:
    return load_file(bundle / "model.safetensors")


def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name, value in one.items() if not torch.equal(value, other[name])}


class Crashing(Reporter):
    """Breaks off in the second epoch."""

    def on_step(self, *, epoch: int, batch: int, loss: float) -> None:
        if (epoch, batch) == (1, 5):
            raise SystemExit("the power went out")


# Which parts learn when.


@pytest.mark.parametrize(
    ("config", "by_epoch"),
    [
        ({"trained": 0}, {0: {"linear"}, 9: {"linear"}}),
        ({"trained": 1}, {0: {"linear", "layer3"}}),
        ({"trained": 9}, {0: {"linear", "layer3", "layer2", "layer1", "conv1", "bn1"}}),
        (
            {"trained": 0, "unfreeze_epochs": 2},
            {1: {"linear"}, 2: {"linear", "layer3"}, 5: {"linear", "layer3", "layer2"}},
        ),
        ({"trained": 0, "unfreeze_epochs": 0.5}, {1: {"linear", "layer3", "layer2"}}),
    ],
)
def test_parts_learn_from_the_top(config: dict[str, Any], by_epoch: dict[int, set[str]]) -> None:
    model = network()
    transfer = Transfer(model, TransferConfig(**config))
    for epoch, expected in by_epoch.items():
        model.train()
        transfer.set_epoch(epoch)
        assert learning(model) == expected
        assert not resting(model) & expected


def test_lower_parts_learn_slower() -> None:
    model = network()
    rates = {
        id(p): factor
        for part, factor in Transfer(model, TransferConfig(layer_decay=0.5)).learning_rates()
        for p in part
    }
    factors = [rates[id(p)] for p in (model.linear.bias, model.layer3[0].bn1.bias, model.conv1.weight)]
    assert factors == [1.0, 0.5, 0.125]
    assert len(rates) == len(list(model.parameters()))


def test_frozen_norms_keep_everything() -> None:
    model = network()
    transfer = Transfer(model, TransferConfig(frozen_norms=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    transfer.set_epoch(0)
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad)
    names = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert names
    assert not any("bn" in name for name in names)


def test_what_did_not_require_gradients_is_left_so() -> None:
    model = network()
    model.conv1.requires_grad_(False)
    Transfer(model, TransferConfig(trained=9)).set_epoch(0)
    assert "conv1" not in learning(model)


# What the weights settle.


def test_weights_name_network_size_and_statistics(digits_run: Any) -> None:
    recipe = load_recipe("finetune", [f"model.weights={digits_run.bundle}"])
    settled = settle_weights(recipe)
    trained = reskit.load(digits_run.bundle).task.preprocess
    assert settled.model.name == "cifar_resnet8"
    assert settled.preprocess.size == trained.size
    assert settled.preprocess.mean == trained.mean
    assert settle_weights(settled) == settled


def test_what_the_recipe_says_comes_first(digits_run: Any) -> None:
    said = [
        "preprocess.size=16",
        "preprocess.mean=[0.5]",
        "preprocess.std=[0.25]",
        "model.name=cifar_resnet8",
    ]
    settled = settle_weights(load_recipe("finetune", [f"model.weights={digits_run.bundle}", *said]))
    assert (settled.preprocess.size, settled.preprocess.mean) == ((16, 16), (0.5,))


def test_a_plain_state_dict_is_recognised(tmp_path: Path) -> None:
    save_file(create_model("cifar_resnet20").state_dict(), tmp_path / "w.safetensors")
    settled = settle_weights(load_recipe("finetune", [f"model.weights={tmp_path / 'w.safetensors'}"]))
    assert settled.model.name == "cifar_resnet20"
    assert settled.preprocess.size == MODELS.get("cifar_resnet20").input_size[1:]


def test_auto_without_weights_and_unknown_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.name: auto needs weights"):
        settle_weights(load_recipe("finetune"))
    save_file({"a": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="no network known"):
        settle_weights(load_recipe("finetune", [f"model.weights={tmp_path / 'w.safetensors'}"]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("transfer={trained: all, unfreeze_epochs: 1}", "needs something frozen"),
        ("transfer={trained: head, on_device_blocks: 1}", "keeps features"),
        ("transfer={trained: -1}", "greater than or equal to 0"),
        ("preprocess={mean: [0.5]}", "mean and std go together"),
    ],
)
def test_what_does_not_go_together_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe("finetune", [override])


# Whole runs.


def test_only_what_is_trained_changes(tmp_path: Path, digits_run: Any) -> None:
    result = tune(tmp_path / "run", digits_run.bundle, "transfer.trained=1")
    before, after = parameters(digits_run.bundle), parameters(result.bundle)
    assert changed(before, after) == {"layer3", "linear"}
    started = reskit.load(result.bundle).config.provenance["weights"]
    assert started["format"] == "bundle"
    assert started["sha256"]["model.safetensors"] == sha256(digits_run.bundle / "model.safetensors")


def test_a_probe_trains_the_head_on_kept_features(tmp_path: Path, digits_run: Any) -> None:
    result = tune(
        tmp_path / "run",
        digits_run.bundle,
        "training.epochs=10",
        "transfer.views=3",
        "augment.rotate=5",
        recipe="linear-probe",
    )
    before, after = parameters(digits_run.bundle), parameters(result.bundle)
    assert changed(before, after) == {"linear"}
    assert result.metrics["top1"] > digits_run.metrics["top1"]
    again = reskit.evaluate(result.bundle)
    assert again.metrics["top1"] == result.metrics["top1"]


def test_a_probe_refuses_cutmix(tmp_path: Path, digits_run: Any) -> None:
    with pytest.raises(ConfigError, match="cutmix"):
        tune(tmp_path / "run", digits_run.bundle, "augment.cutmix=1.0", recipe="linear-probe")


@pytest.mark.parametrize(
    "overrides",
    [
        ("transfer.trained=0", "transfer.unfreeze_epochs=1", "training.epochs=3"),
        ("transfer={trained: head, views: 2, layer_decay: 1}", "training.epochs=3", "training.ema_decay=0.9"),
    ],
    ids=["gradual", "probe"],
)
def test_transfer_resumes_exactly(tmp_path: Path, digits_run: Any, overrides: tuple[str, ...]) -> None:
    whole = tune(tmp_path / "whole", digits_run.bundle, *overrides)
    with pytest.raises(SystemExit):
        reskit.train(
            "finetune",
            weights=digits_run.bundle,
            out=tmp_path / "broken",
            overrides=[*FIXED, *overrides],
            reporter=Crashing(),
        )
    resumed = reskit.train(out=tmp_path / "broken", resume=True)
    assert changed(parameters(whole.bundle), parameters(resumed.bundle)) == set()


def test_other_classes_and_channels(tmp_path: Path, digits_run: Any) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("dark", 12), ("light", 12)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 80, (12, 12, 3), dtype=np.uint8) + (150 if name == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{index}.png")
    result = reskit.train(
        "finetune",
        weights=digits_run.bundle,
        data=tmp_path / "photos",
        out=tmp_path / "run",
        overrides=[*FIXED, "training.batch_size=4", "training.epochs=4"],
    )
    bundle = reskit.load(result.bundle)
    assert (bundle.task.labels, bundle.model.architecture["in_channels"]) == (["dark", "light"], 3)
    assert result.metrics["top1"] > 0.7


def test_on_device_only_the_top_changes_and_the_bundle_is_ordinary(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(create_model("mobilenet_v2", width_factor=0.25).state_dict(), tmp_path / "w.safetensors")
    result = reskit.train(
        "finetune-on-device",
        weights=tmp_path / "w.safetensors",
        out=tmp_path / "run",
        overrides=[
            *FIXED,
            "model={name: mobilenet_v2, arguments: {width_factor: 0.25}}",
            "preprocess={size: 32, statistics: data}",
            "training.batch_size=128",
        ],
    )
    before, after = load_file(tmp_path / "w.safetensors"), parameters(result.bundle)
    assert list(before) == list(after)
    blocks = {name.split(".")[1] for name in before if name.startswith("features.")}
    same = {
        name.split(".")[1]
        for name in before
        if name.startswith("features.")
        and name != "features.0.0.weight"  # summed: digits are grey
        and torch.equal(before[name], after[name])
    }
    tops = {str(index) for index in range(13, 19)}  # five inverted residuals and the layer after them
    assert blocks - tops <= same
    changed_convs = {
        name.split(".")[1]
        for name in before
        if name.endswith("weight")
        and before[name].ndim == 4
        and name in after
        and before[name].shape == after[name].shape
        and not torch.equal(before[name], after[name])
    }
    assert changed_convs == tops
    assert reskit.load(result.bundle).verify() < 1e-5
