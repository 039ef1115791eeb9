"""Pruning: what is left computes what the lesioned network did, is rebuilt from JSON, and is chosen well."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reskit
from reskit.bundle import Bundle
from reskit.errors import ConfigError, ModelError
from reskit.insight import Pruned, dropped, prune, removable_blocks, residual_blocks, without_blocks
from reskit.insight.choice import choose, how_many
from reskit.insight.examples import Examples
from reskit.insight.lesion import lesion
from reskit.models import Backbone, create_model

FIXED = ("runtime.precision=fp32", "runtime.layout=nchw")

# A network of every family and kind of block that can lose some, and what it loses.
CUTS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "cifar": ("cifar_resnet20", {"width": 8}, ["layer1.0", "layer1.1", "layer2.2", "layer3.1"]),
    "basic": ("resnet18", {"depths": [2, 3], "width": 8, "shortcut": "D"}, ["layer1.0", "layer2.1"]),
    "bottleneck": ("resnet50", {"depths": [3, 3], "width": 8, "se": 4}, ["layer1.1", "layer2.2"]),
    "resnext": (
        "resnext50_32x4d",
        {"depths": [3, 2], "width": 16, "groups": 4, "width_per_group": 16},
        ["layer1.2", "layer2.1"],
    ),
    "preact": (
        "cifar_preact_resnet110",
        {"depths": [3, 3], "width": 8, "stem_width": 8},
        ["layer1.1", "layer2.2"],
    ),
    "wide": ("wrn_16_4", {"depths": [3, 2], "width": 16}, ["layer1.2", "layer2.1"]),
    "preact_bottleneck": ("resnetv2_50", {"depths": [3, 2], "width": 8, "stem_width": 8}, ["layer1.1"]),
}


def settled(name: str, **arguments: Any) -> Backbone:
    """Build a network for evaluation, its norms filled with statistics of what passes through."""
    torch.manual_seed(0)
    model = create_model(name, **{"num_classes": 5, **arguments})
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    with torch.no_grad():
        model(images())
    return model.eval()


def images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def drawn(bundle: Bundle, count: int = 150) -> Examples:
    return Examples.draw(reskit.open_source(None), "train", bundle.task, count=count)


@pytest.fixture(scope="module")
def pruned(deep: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    return prune(deep, tmp_path_factory.mktemp("pruned") / "out", examples=150, epochs=1, overrides=FIXED)


# What is left


@pytest.mark.parametrize("family", CUTS)
@torch.no_grad()
def test_what_is_left_computes_what_the_lesioned_network_did(family: str) -> None:
    name, arguments, gone = CUTS[family]
    model, x = settled(name, **arguments), images()
    whole = model(x)
    smaller = without_blocks(model, gone)
    with contextlib.ExitStack() as stack:
        for block in gone:
            stack.enter_context(dropped(model.get_submodule(block)))  # type: ignore[arg-type]
        expected = model(x)
    assert torch.equal(smaller(x), expected)
    assert (whole - expected).abs().max() > 1e-3
    assert len(residual_blocks(smaller)) == len(residual_blocks(model)) - len(gone)
    assert not smaller.training


@pytest.mark.parametrize("family", CUTS)
def test_what_is_left_is_rebuilt_from_json(family: str) -> None:
    name, arguments, gone = CUTS[family]
    smaller = without_blocks(settled(name, **arguments), gone)
    again = create_model(**json.loads(json.dumps(smaller.architecture)))
    again.load_state_dict(smaller.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(images()), smaller(images()))


def test_blocks_behind_move_up() -> None:
    model = settled("cifar_resnet20", width=8)
    smaller = without_blocks(model, ["layer2.1", "layer1.0"])
    assert smaller.architecture == {**model.architecture, "depths": [2, 2, 3]}
    moved = {"layer1.0": "layer1.1", "layer1.1": "layer1.2", "layer2.0": "layer2.0", "layer2.1": "layer2.2"}
    for now, before in moved.items():
        one, other = (m.get_submodule(name) for m, name in ((smaller, now), (model, before)))
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key])


@pytest.mark.parametrize(
    ("name", "arguments", "able"),
    [
        ("cifar_resnet8", {}, []),  # one block a stage
        ("cifar_resnet8", {"depths": [2, 1, 2]}, ["layer1.0", "layer1.1", "layer3.1"]),
        ("cifar_resnet8", {"depths": [2, 2], "width": [8, 8]}, ["layer1.0", "layer1.1", "layer2.1"]),
        ("resnet50", {"depths": [2, 1]}, ["layer1.1"]),  # its first block widens
        ("wrn_16_4", {"depths": [2, 1], "width": 16}, ["layer1.1"]),  # its first block has no norm of its own
        ("cifar_resnet8", {"depths": [3, 3], "shortcut": "C"}, []),
        ("cifar_plain20", {}, []),
        ("cifar_densenet_bc_100_12", {"depths": [2, 2]}, []),
        ("nin_residual", {}, []),
    ],
)
def test_which_blocks_can_go(name: str, arguments: dict[str, Any], able: list[str]) -> None:
    assert removable_blocks(create_model(name, **arguments)) == able


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["layer2.0"], "'layer2.0' cannot be left out.*able to go are layer1.0, layer1.1, layer2.1"),
        (["layer1.7"], "no block 'layer1.7'; did you mean 'layer1.1'"),
        (["layer1.0", "layer1.1"], "a stage would be left without a block"),
    ],
)
def test_blocks_that_cannot_go(names: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        without_blocks(create_model("cifar_resnet8", depths=[2, 2]), names)


# Which go


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.25, 3), (0.34, 4), (6 / 9, 6)])
def test_a_share_of_all_blocks_rounded_up(share: float, count: int) -> None:
    assert how_many(create_model("cifar_resnet20", width=8), share) == count


def test_more_than_can_go_is_refused() -> None:
    with pytest.raises(ModelError, match="70% of the blocks are 7, and 6 can be left out"):
        how_many(create_model("cifar_resnet20", width=8), 0.7)
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            how_many(create_model("cifar_resnet20", width=8), share)


def test_silenced_blocks_go_first(deep: Bundle) -> None:
    model = copy.deepcopy(deep.model)
    silenced = ["layer3.1", "layer1.2"]
    for name in silenced:
        nn.init.zeros_(model.get_submodule(name).bn2.weight)
        nn.init.zeros_(model.get_submodule(name).bn2.bias)
    chosen = choose(model, drawn(deep), count=3, by="ratio", say=print)
    assert set(chosen[:2]) == set(silenced)
    losses = [drawn(deep).score(without_blocks(model, chosen[:n]))[0] for n in range(4)]
    assert losses[0] == pytest.approx(losses[2], abs=1e-6)
    assert losses[3] != pytest.approx(losses[2], abs=1e-6)


def test_one_at_a_time_is_as_trying_every_block_each_time(deep: Bundle) -> None:
    model, examples = copy.deepcopy(deep.model), drawn(deep)
    chosen = choose(model, examples, count=4, by="lesion", say=print)
    kept, expected = list(residual_blocks(model)), []
    for _ in range(4):
        names = dict(zip(residual_blocks(model), kept, strict=True))
        losses = {name: lesion(model, name, examples)[0] for name in removable_blocks(model)}
        cheapest = min(losses, key=lambda name: losses[name])
        model = without_blocks(model, [cheapest])
        kept.remove(names[cheapest])
        expected.append(names[cheapest])
    assert chosen == expected


@pytest.mark.parametrize("by", ["lesion", "ratio"])
def test_all_that_can_go_may_go(deep: Bundle, by: Any) -> None:
    model = copy.deepcopy(deep.model)
    chosen = choose(model, drawn(deep, 20), count=6, by=by, say=print)
    assert without_blocks(model, chosen).architecture["depths"] == [1, 1, 1]
    assert not {"layer2.0", "layer3.0"} & set(chosen)


# The whole


def test_the_outcome(pruned: Pruned, deep: Bundle) -> None:
    assert len(pruned.removed) == 3  # a quarter of nine, rounded up
    assert (pruned.by, pruned.chosen_on, pruned.split, pruned.examples) == ("lesion", "train", "test", 150)
    assert [step.block for step in pruned.steps] == [None, *pruned.removed]
    assert [step.blocks for step in pruned.steps] == [9, 8, 7, 6]
    for one, other in itertools.pairwise(pruned.steps):
        assert other.macs < one.macs
        assert other.parameters < one.parameters
    assert all(step.latency_ms > 0 for step in pruned.steps)
    assert pruned.latency_ratio == pruned.steps[0].latency_ms / pruned.steps[3].latency_ms
    assert pruned.metrics["intact"] == reskit.evaluate(deep).metrics
    assert json.loads(pruned.files["figures"].read_text())["removed"] == list(pruned.removed)
    assert pruned.files["pruning"].stat().st_size > 10_000
    assert [row["block"] for row in pruned.rows] == ["(intact)", *pruned.removed]


def test_the_bundle_is_an_ordinary_one(pruned: Pruned, deep: Bundle) -> None:
    bundle = Bundle.load(pruned.bundle)
    assert bundle.verify() == 0
    assert bundle.config.architecture == without_blocks(deep.model, pruned.removed).architecture
    assert bundle.task.config() == deep.task.config()
    assert reskit.evaluate(bundle).metrics == pytest.approx(pruned.metrics["tuned"])
    assert ", ".join(pruned.removed) in bundle.config.provenance["settings"]["description"]
    assert bundle.config.provenance["fingerprint"] == deep.config.provenance["fingerprint"]


def test_the_bundle_as_cut_is_kept(pruned: Pruned, deep: Bundle) -> None:
    cut = Bundle.load(pruned.bundle.parents[1] / "pruned")
    assert cut.config.provenance["pruned"] == {
        "bundle": deep.config.checksum(),
        "blocks": list(pruned.removed),
    }
    expected = without_blocks(deep.model, pruned.removed).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in cut.model.state_dict().items())
    assert reskit.evaluate(cut).metrics == pruned.metrics["removed"]
    score = drawn(deep).score(cut.model)
    assert (pruned.steps[-1].loss, pruned.steps[-1].metric) == pytest.approx(score)


def test_learning_on_helps(pruned: Pruned) -> None:
    assert pruned.metrics["tuned"]["cross_entropy"] < pruned.metrics["removed"]["cross_entropy"]


def test_the_same_again(pruned: Pruned, deep: Bundle, tmp_path: Path) -> None:
    again = prune(deep, tmp_path / "out", examples=150, epochs=0)
    assert again.removed == pruned.removed
    assert again.metrics["removed"] == pruned.metrics["removed"]
    assert again.metrics.keys() == {"intact", "removed"}
    assert again.bundle == tmp_path / "out" / "pruned"


def test_named_blocks_without_learning_on(deep: Bundle, tmp_path: Path) -> None:
    outcome = prune(deep, tmp_path / "out", blocks=["layer3.2", "layer1.0"], examples=20, epochs=0)
    assert (outcome.removed, outcome.by) == (("layer3.2", "layer1.0"), None)
    assert Bundle.load(outcome.bundle).config.architecture["depths"] == [2, 3, 2]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "pruned",
        "pruning.json",
        "pruning.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"by": "size"}, ConfigError, "unknown way to choose 'size'"),
        ({"split": "test"}, ConfigError, "choosing by 'test' would flatter"),
        ({"share": 0.9}, ModelError, "90% of the blocks are 9, and 6 can be left out"),
        ({"blocks": ["layer2.0"]}, ModelError, "'layer2.0' cannot be left out"),
        ({"overrides": ["training.seed=3"]}, ConfigError, "stay the bundle's own"),
        ({"overrides": ["data.holdout=0.5"]}, ConfigError, "stay the bundle's own"),
        ({"overrides": ["training.epoch=3"]}, ConfigError, "did you mean 'epochs'"),
        ({"examples": 0}, ConfigError, "positive"),
    ],
)
def test_refused_before_anything_is_written(
    deep: Bundle, tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prune(deep, tmp_path / "out", **{"examples": 4, **arguments})
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(deep: Bundle, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        prune(deep, tmp_path)
    with pytest.raises(ConfigError, match="is not empty"):
        prune(deep, tmp_path / "mine.txt")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cifar_plain20", {}, "is plain"),
        ("cifar_densenet_bc_100_12", {"depths": [1, 1]}, "no residual blocks"),
        ("nin_residual", {}, "are 1, and 0 can be left out"),
        ("cifar_resnet8", {}, "are 1, and 0 can be left out"),
    ],
)
def test_networks_that_cannot_lose_a_block(
    deep: Bundle, tmp_path: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    model = create_model(name, num_classes=10, in_channels=1, **arguments)
    samples = deep.samples["samples"]
    bundle = Bundle.write(
        tmp_path / "b", task=deep.task, model=model, metrics={}, provenance={}, samples=samples
    )
    with pytest.raises(ModelError, match=message):
        prune(bundle, tmp_path / "out", examples=4)
