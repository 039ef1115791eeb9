"""Lesions: without its F a block is its shortcut, figures are what one gets by hand, nothing is altered."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reskit
from reskit.bundle import Bundle
from reskit.errors import ConfigError, DataError, ModelError
from reskit.files import to_json
from reskit.insight import LesionStudy, dropped, lesion_study, residual_blocks
from reskit.models import Backbone, create_model
from reskit.nn import BasicBlock, InvertedResidual, PreActBasicBlock, Residual, ResidualMLP
from reskit.training.callbacks import Reporter


def settled(name: str, **arguments: Any) -> Backbone:
    """Build a network for evaluation, its norms filled with statistics of what passes through."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, **arguments)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    with torch.no_grad():
        model(images())
    return model.eval()


def images(count: int = 8, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def altered(bundle: Bundle, path: Path, change: Any) -> Bundle:
    """Write a bundle like another whose network was changed by hand."""
    model = copy.deepcopy(bundle.model)
    with torch.no_grad():
        change(model)
    provenance = {"settings": bundle.config.provenance["settings"]}
    samples = bundle.samples["samples"]
    return Bundle.write(
        path, task=bundle.task, model=model, metrics={}, provenance=provenance, samples=samples
    )


def silence(block: nn.Module) -> None:
    """Make F of a basic block zero."""
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)


@pytest.fixture(scope="module")
def study(deep: Bundle, tmp_path_factory: pytest.TempPathFactory) -> LesionStudy:
    return lesion_study(deep, examples=300, out=tmp_path_factory.mktemp("study"))


# What dropping is


@pytest.mark.parametrize(
    ("block", "shape", "by_hand"),
    [
        (BasicBlock(4, 4), (2, 4, 6, 6), torch.relu),
        (
            BasicBlock(4, 8, stride=2, shortcut="A"),
            (2, 4, 6, 6),
            lambda x: F.pad(x, (0,) * 4 + (2, 2))[..., ::2, ::2].relu(),
        ),
        (PreActBasicBlock(4, 4), (2, 4, 6, 6), lambda x: x),
        (InvertedResidual(8, 8), (2, 8, 6, 6), lambda x: x),
        (ResidualMLP(5), (2, 5), lambda x: x),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Residual) else "",
)
def test_without_f_a_block_is_its_shortcut(block: Residual, shape: tuple[int, ...], by_hand: Any) -> None:
    x = torch.randn(shape)
    before = x.clone()
    with torch.no_grad():
        whole = block.eval()(x)
        with dropped(block):
            assert torch.equal(block(x), by_hand(before))
        assert torch.equal(x, before)  # although the activation works in place
        assert torch.equal(block(x), whole)
        assert not torch.equal(whole, by_hand(before))


def test_without_f_a_projection_is_left() -> None:
    block = BasicBlock(4, 8, stride=2).eval()
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad(), dropped(block):
        conv, norm = block.downsample
        assert torch.equal(block(x), norm(conv(x)).relu())


def test_what_goes_wrong_inside_leaves_the_block_whole() -> None:
    block = BasicBlock(4, 4).eval()
    x = torch.randn(2, 4, 6, 6)
    expected = block(x)
    with pytest.raises(RuntimeError), dropped(block):
        raise RuntimeError
    assert torch.equal(block(x), expected)


def test_a_plain_block_is_refused() -> None:
    with (
        pytest.raises(ModelError, match="no shortcut to carry the signal"),
        dropped(BasicBlock(4, 4, residual=False)),
    ):
        pass


def test_a_lesioned_network_is_the_one_written_out_without_the_block() -> None:
    model = settled("cifar_resnet8", depths=[3, 2, 1], width=8)
    x = images()
    with torch.no_grad():
        y = model.relu(model.bn1(model.conv1(x)))
        for stage, gone in ((model.layer1, 1), (model.layer2, None), (model.layer3, None)):
            for place, block in enumerate(stage):
                y = y if place == gone else block(y)
        expected = model.linear(y.mean((2, 3)))
        with dropped(model.layer1[1]):
            assert torch.allclose(model(x), expected, atol=1e-6)
        assert not torch.allclose(model(x), expected, atol=1e-2)


# What a study finds


def test_every_block_is_there_in_order(study: LesionStudy, deep: Bundle) -> None:
    names = [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    assert [block.name for block in study.blocks] == names == list(residual_blocks(deep.model))
    assert [block.shortcut for block in study.blocks] == ["identity"] * 3 + (
        ["projection"] + ["identity"] * 2
    ) * 2
    assert [block.removable for block in study.blocks] == [
        block.shortcut == "identity" for block in study.blocks
    ]
    assert (study.split, study.examples, study.metric_name) == ("train", 300, "top1")


def test_loss_and_metric_are_those_of_the_lesioned_network(study: LesionStudy, deep: Bundle) -> None:
    split = reskit.open_source(None)["train"]
    rows = split.rows[np.linspace(0, len(split) - 1, 300).astype(int)]
    pixels = torch.stack([deep.task.preprocess.read(split.item(row)) for row in rows])
    labels = torch.from_numpy(split.all_labels[rows])
    model, x = copy.deepcopy(deep.model), deep.task.normalize(pixels)

    def figures() -> tuple[float, float]:
        with torch.no_grad():
            logits = model(x)
        return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())

    assert (study.loss, study.metric) == pytest.approx(figures(), abs=1e-5)
    for name in ("layer1.0", "layer2.0", "layer3.2"):
        block = model.get_submodule(name)
        block.residual = lambda x, block=block: torch.zeros_like(block.shortcut(x))  # type: ignore[method-assign]
        found = next(figures for figures in study.blocks if figures.name == name)
        assert (found.loss, found.metric) == pytest.approx(figures(), abs=1e-5)
        assert found.loss > study.loss + 1e-3
        del block.residual


def test_the_ratio_is_that_of_norms(deep: Bundle) -> None:
    found = lesion_study(deep, examples=40, batch_size=16)  # of several batches, the last not full
    split, model = reskit.open_source(None)["train"], copy.deepcopy(deep.model)
    rows = split.rows[np.linspace(0, len(split) - 1, 40).astype(int)]
    x = deep.task.normalize(torch.stack([deep.task.preprocess.read(split.item(row)) for row in rows]))
    with torch.no_grad():
        x = model.layer1[0](model.relu(model.bn1(model.conv1(x))))
        branch = model.layer1[1].residual(x)
    sizes = [
        [np.linalg.norm(example) for example in values.numpy()]
        for values in (branch.flatten(1), x.flatten(1))
    ]
    assert found.blocks[1].ratio == pytest.approx(np.mean(np.divide(*sizes)), rel=1e-5)


def test_costs_are_those_of_the_layers(study: LesionStudy, deep: Bundle) -> None:
    by_name = {block.name: block for block in study.blocks}
    side = deep.task.preprocess.size[0]
    assert by_name["layer1.1"].macs == 2 * 8 * 8 * 9 * side**2
    assert by_name["layer1.1"].parameters == 2 * (8 * 8 * 9 + 2 * 8)
    assert by_name["layer2.0"].macs == (8 * 16 + 16 * 16) * 9 * (side // 2) ** 2
    assert study.macs == sum(block.macs for block in study.blocks) + 8 * 9 * side**2 + 32 * 10
    assert study.parameters == sum(p.numel() for p in deep.model.parameters())
    assert study.rows[1]["macs"] == f"{by_name['layer1.1'].macs / study.macs:.1%}"


def test_a_silenced_block_costs_nothing(deep: Bundle, tmp_path: Path) -> None:
    changed = altered(deep, tmp_path / "b", lambda model: silence(model.layer2[1]))
    found = lesion_study(changed, examples=100)
    by_name = {block.name: block for block in found.blocks}
    assert by_name["layer2.1"].loss == found.loss
    assert by_name["layer2.1"].ratio == 0
    others = [block for block in found.blocks if block.name != "layer2.1"]
    assert min(block.ratio for block in others) > 0
    assert min(block.loss for block in others if block.loss is not None) > found.loss - 0.05


def test_twice_the_same_and_nothing_altered(study: LesionStudy, deep: Bundle) -> None:
    before = {name: value.clone() for name, value in deep.model.state_dict().items()}
    again = lesion_study(deep, examples=300)
    assert again.blocks == study.blocks
    assert all(torch.equal(value, before[name]) for name, value in deep.model.state_dict().items())
    assert not any(block._forward_hooks for block in residual_blocks(deep.model).values())


def test_what_is_written(study: LesionStudy) -> None:
    assert sorted(path.name for path in study.files["lesion"].parent.iterdir()) == [
        "lesion.json",
        "lesion.png",
    ]
    assert json.loads(study.files["figures"].read_text()) == json.loads(to_json(study.as_dict()))
    assert study.files["lesion"].stat().st_size > 10_000


# Which networks and data


@pytest.mark.parametrize(
    ("name", "arguments", "kinds", "able"),
    [
        ("resnet50", {"depths": [2, 2], "width": 8}, "piPi", [1, 3]),
        ("resnet18", {"depths": [1, 2], "width": 8}, "ipi", [2]),
        ("cifar_resnet8", {"depths": [2, 2], "shortcut": "C"}, "pppp", []),
        ("cifar_preact_resnet110", {"depths": [2, 2], "width": 8, "stem_width": 8}, "iipi", [1, 3]),
        ("nin_residual", {}, "ppi", []),
    ],
)
def test_kinds_of_networks(
    deep: Bundle, tmp_path: Path, name: str, arguments: dict[str, Any], kinds: str, able: list[int]
) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, in_channels=1, **arguments)
    bundle = Bundle.write(
        tmp_path / "b",
        task=deep.task,
        model=model,
        metrics={},
        provenance={},
        samples=deep.samples["samples"],
    )
    found = lesion_study(bundle, examples=4)
    expected = ["identity" if kind == "i" else "projection" for kind in kinds.lower()]
    assert [block.shortcut for block in found.blocks] == expected
    assert [place for place, block in enumerate(found.blocks) if block.removable] == able


def test_plain_blocks_beside_others_have_no_lesion(deep: Bundle, tmp_path: Path) -> None:
    model = create_model("mobilenet_v2", num_classes=10, in_channels=1, width_factor=0.1)
    bundle = Bundle.write(
        tmp_path / "b",
        task=deep.task,
        model=model,
        metrics={},
        provenance={},
        samples=deep.samples["samples"],
    )
    found = lesion_study(bundle, examples=4, out=tmp_path / "out")
    plain = [block for block in found.blocks if block.shortcut == "none"]
    assert [block.name for block in plain] == [n for n, b in residual_blocks(model).items() if b.plain]
    assert 0 < len(plain) < len(found.blocks)
    assert all((block.loss, block.metric, block.ratio) == (None, None, None) for block in plain)
    assert all(block.loss is not None for block in found.blocks if block not in plain)


def test_an_imported_graph_has_blocks_too(deep: Bundle, tmp_path: Path) -> None:
    convolution = {
        "in_channels": 4,
        "out_channels": 4,
        "kernel_size": [3, 3],
        "stride": [1, 1],
        "padding": [1] * 4,
    }
    convolution |= {"dilation": [1, 1], "groups": 1}
    nodes = [
        {"name": "stem", "op": "conv", "inputs": ["input"], "attributes": {**convolution, "in_channels": 1}},
        {"name": "body", "op": "conv", "inputs": ["stem"], "attributes": convolution},
        {"name": "sum", "op": "add", "inputs": ["stem", "body"], "attributes": {}},
        {"name": "gap", "op": "global_avg_pool", "inputs": ["sum"], "attributes": {}},
        {"name": "flat", "op": "flatten", "inputs": ["gap"], "attributes": {"order": "chw"}},
        {
            "name": "fc",
            "op": "linear",
            "inputs": ["flat"],
            "attributes": {"in_features": 4, "out_features": 10},
        },
    ]
    model = create_model("graph", nodes=nodes, input_shape=[1, 8, 8], in_channels=1)
    bundle = Bundle.write(
        tmp_path / "b",
        task=deep.task,
        model=model,
        metrics={},
        provenance={},
        samples=deep.samples["samples"],
    )
    (block,) = lesion_study(bundle, examples=4).blocks
    assert (block.shortcut, block.removable, block.macs) == ("identity", False, 4 * 4 * 9 * 64)
    assert block.loss is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [("cifar_plain20", "cifar_plain20 is plain"), ("cifar_densenet_bc_100_12", "no residual blocks")],
)
def test_networks_without_shortcuts_are_refused(
    deep: Bundle, tmp_path: Path, name: str, message: str
) -> None:
    model = create_model(name, num_classes=10, in_channels=1, depths=[1, 1])
    bundle = Bundle.write(
        tmp_path / "b",
        task=deep.task,
        model=model,
        metrics={},
        provenance={},
        samples=deep.samples["samples"],
    )
    with pytest.raises(ModelError, match=message):
        lesion_study(bundle)


def test_choices_are_not_made_on_the_held_out_split(deep: Bundle) -> None:
    source = reskit.open_source(None, validation=0.2)
    assert lesion_study(deep, source, examples=10).split == "validation"
    del source.splits["test"]
    assert source.held_out == "validation"
    assert lesion_study(deep, source, examples=10).split == "train"


def test_wrong_arguments(deep: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test'"):
        lesion_study(deep, split="tset")
    with pytest.raises(ConfigError, match="positive"):
        lesion_study(deep, examples=0)
    source = reskit.open_source(None)
    source.classes = ["cat", "dog"]
    with pytest.raises(DataError, match="cat, dog, the bundle was trained on 0"):
        lesion_study(deep, source)


def test_what_is_said(deep: Bundle) -> None:
    class Listening(Reporter):
        def say(self, text: str) -> None:
            heard.append(text)

    heard: list[str] = []
    lesion_study(deep, examples=10, reporter=Listening())
    assert len(heard) == 1 + 9
    assert heard[0].startswith("intact, on 10 examples of train")
    assert heard[-1].startswith("without layer3.2")
