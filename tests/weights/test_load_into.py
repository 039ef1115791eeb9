"""The one door: which reader is asked, bundles, and what transfer makes of what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reskit.bundle import Bundle
from reskit.data import ImagePreprocess
from reskit.errors import WeightsError
from reskit.files import sha256
from reskit.models import create_model
from reskit.tasks import Classify
from reskit.weights import READERS, Checkpoint, KeyReport, Reader, load_into, read_checkpoint
from reskit.weights.graph import Graph, Node
from reskit.weights.tracing import trace

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def same(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all(torch.equal(one[k], other[k]) for k in one)


def checkpoint(state: dict[str, Tensor], graph: Graph | None = None) -> Checkpoint:
    return Checkpoint(format="test", source="test.weights", state=state, graph=graph)


def small(name: str = "cifar_resnet8", **arguments: Any) -> Any:
    torch.manual_seed(0)
    return create_model(name, **arguments).eval()


def settled(model: Any) -> Any:
    """Give the norms statistics of their own, which keep the signal alive."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 32, 32))
    return model.eval()


# Which reader


@pytest.mark.parametrize(
    ("name", "save", "expected"),
    [
        ("w.pth", torch.save, "torch"),
        ("w.th", torch.save, "torch"),
        ("weights", torch.save, "torch"),
        ("w.safetensors", save_file, "safetensors"),
        ("w.bin", save_file, "safetensors"),
    ],
)
def test_files_are_told_by_name_or_content(tmp_path: Path, name: str, save: Any, expected: str) -> None:
    save(STATE, tmp_path / name)
    for source in (tmp_path / name, str(tmp_path / name)):
        found = read_checkpoint(source)
        assert found.format == expected
        assert found.source == str(source)
        assert same(found.state, STATE)
        assert found.provenance == {"sha256": {name: sha256(tmp_path / name)}}


def test_the_older_format_without_a_suffix(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "weights", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "weights").format == "torch"


def test_what_no_reader_knows(tmp_path: Path) -> None:
    (tmp_path / "notes.xyz").write_text("weights?")
    with pytest.raises(
        WeightsError, match=r"notes\.xyz: no known format.*hf:owner/name.*safetensors.*torchvision:"
    ):
        read_checkpoint(tmp_path / "notes.xyz")
    with pytest.raises(WeightsError, match=r"is a directory and no reskit bundle"):
        read_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match=r"no weights file at .*absent\.xyz"):
        read_checkpoint(tmp_path / "absent.xyz")
    with pytest.raises(WeightsError, match=r"no weights file at .*absent\.pth"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="no weights were given"):
        read_checkpoint()


def test_several_files_go_to_the_reader_that_claims_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(READERS, "_items", dict(READERS._items))
    asked: list[Any] = []

    def read(sources: Any) -> Checkpoint:
        asked.append(list(sources))
        return checkpoint(dict(small().state_dict()))

    READERS.add(
        "pair", Reader(claims=lambda s: [Path(x).suffix for x in s] == [".a", ".b"], read=read, files="a b")
    )
    pair = [tmp_path / "net.a", str(tmp_path / "net.b")]
    create_model("cifar_resnet8", weights=pair)
    assert asked == [pair]


# Hostile files


@pytest.mark.parametrize("length", [2**63, 2**40, 10**9, 101])
def test_a_header_longer_than_its_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * 99)
    with pytest.raises(WeightsError, match=r"not a whole safetensors file.*fetch or save it again"):
        read_checkpoint(path)


@pytest.mark.parametrize("end", [2**40, 10**4, -1])
def test_a_tensor_beyond_its_file(tmp_path: Path, end: int) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, end]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        read_checkpoint(path)


def test_an_archive_that_unpacks_to_far_more_than_it_is(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(10**6))
    with pytest.raises(WeightsError, match=r"says it unpacks to 1000000"):
        read_checkpoint(tmp_path / "w.pth")


def test_an_archive_packed_again_is_read(tmp_path: Path) -> None:
    import zipfile

    torch.manual_seed(0)
    state = {"a": torch.randn(2000)}
    torch.save(state, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as stored,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert same(read_checkpoint(tmp_path / "packed.pth").state, state)


def test_a_storage_that_says_it_is_longer_than_it_is(tmp_path: Path) -> None:
    import zipfile

    torch.save({"a": torch.arange(6.0)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as good, zipfile.ZipFile(tmp_path / "bad.pth", "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            bad.writestr(name, data.replace(b"K\x06", b"K\xc8") if name.endswith("data.pkl") else data)
    with pytest.raises(WeightsError, match="not a whole PyTorch weights file"):
        read_checkpoint(tmp_path / "bad.pth")


# Bundles


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    preprocess = ImagePreprocess(size=(16, 12), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    return Bundle.write(
        tmp_path / "bundle",
        task=Classify(preprocess=preprocess, labels=["ant", "bee"]),
        model=small(num_classes=2),
        metrics={},
        provenance={},
        samples=torch.zeros(4, 3, 16, 12, dtype=torch.uint8),
    ).path


def test_a_bundle_is_a_source_of_weights(bundle: Path) -> None:
    found = read_checkpoint(bundle)
    config = json.loads((bundle / "config.json").read_text())
    assert found.format == "bundle"
    assert same(found.state, load_file(bundle / "model.safetensors"))
    assert found.architecture == config["architecture"]
    assert found.labels == config["task"]["labels"]
    assert found.preprocess == config["task"]["preprocess"]
    assert found.provenance["sha256"] == {"model.safetensors": sha256(bundle / "model.safetensors")}
    assert found.architecture is not None
    model = create_model(**found.architecture, weights=str(bundle))
    assert same(model.state_dict(), found.state)


def test_bundles_that_were_altered_are_refused(bundle: Path) -> None:
    weights = bundle / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WeightsError, match="was altered"):
        read_checkpoint(bundle)
    weights.unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing"):
        read_checkpoint(bundle)
    weights.write_bytes(whole)
    for text in ("{", "[]", "{}", '{"architecture": 1}'):
        (bundle / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=r"config\.json is not the config\.json of a reskit bundle"):
            read_checkpoint(bundle)


# By how layers connect


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x)
        return out


def tiny_graph(name: str) -> Graph:
    node = Node(
        name=name,
        op="conv",
        inputs=("input",),
        attributes={
            "in_channels": 3,
            "out_channels": 4,
            "kernel_size": [1, 1],
            "stride": [1, 1],
            "padding": [0, 0, 0, 0],
            "dilation": [1, 1],
            "groups": 1,
        },
    )
    weights = {f"{name}.weight": torch.arange(12.0).reshape(4, 3, 1, 1), f"{name}.bias": torch.ones(4)}
    return Graph(nodes=[node], input_shape=(3, None, None), weights=weights)


def test_a_graph_whose_names_are_the_model_s_needs_no_aligning() -> None:
    graph, model = tiny_graph("first"), Tiny()
    report = load_into(model, checkpoint(dict(graph.weights), graph))
    assert same(model.state_dict(), graph.weights)
    assert not report.renamed


def test_a_graph_of_other_names_is_aligned() -> None:
    graph, model = tiny_graph("conv2d_1"), Tiny()
    report = load_into(model, checkpoint(dict(graph.weights), graph))
    assert torch.equal(model.first.weight, graph.weights["conv2d_1.weight"])
    assert report.renamed == {"conv2d_1.weight": "first.weight", "conv2d_1.bias": "first.bias"}


def traced(model: nn.Module) -> Checkpoint:
    graph = trace(model, (3, 32, 32))
    return checkpoint(dict(graph.weights), graph)


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"features_only": True}])
@pytest.mark.parametrize("name", ["cifar_resnet8", "mobilenet_v2"])
def test_a_graph_in_a_network_without_head(name: str, arguments: dict[str, Any]) -> None:
    theirs = settled(small(name))
    ours = create_model(name, weights=traced(theirs), **arguments).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours.pooled(x), theirs.pooled(x))


def test_a_graph_is_adapted_as_well() -> None:
    theirs = settled(small())
    ours = small(num_classes=3, in_channels=1)
    with pytest.raises(WeightsError, match=r"conv1\.weight is \(16, 3, 3, 3\) there"):
        load_into(ours, traced(theirs))
    report = load_into(ours, traced(theirs), adapt=True)
    assert set(report.adapted) == {"conv1.weight", "linear.weight", "linear.bias"}
    grey = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours.pooled(grey), theirs.pooled(grey.expand(-1, 3, -1, -1)))


# Transfer


def test_a_head_of_another_width_is_left_as_it_was() -> None:
    theirs, ours = small(), small(num_classes=3)
    before = ours.linear.weight.clone()
    source = checkpoint(dict(theirs.state_dict()))
    with pytest.raises(WeightsError, match=r"linear\.weight is \(10, 64\) there.*adapt=True"):
        load_into(ours, source)
    assert torch.equal(ours.linear.weight, before)
    report = load_into(ours, source, adapt=True)
    assert report.adapted == {
        "linear.weight": "left as it was: 10 classes in the file, 3 here",
        "linear.bias": "left as it was: 10 classes in the file, 3 here",
    }
    assert torch.equal(ours.linear.weight, before)
    assert not any([report.missing, report.unexpected, report.mismatched])
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(ours.pooled(x), theirs.pooled(x))


def test_a_head_within_a_sequence_is_left_as_it_was() -> None:
    source = checkpoint(dict(small("mobilenet_v2", width_factor=0.25).state_dict()))
    report = load_into(small("mobilenet_v2", width_factor=0.25, num_classes=3), source, adapt=True)
    assert set(report.adapted) == {"classifier.1.weight", "classifier.1.bias"}


def test_a_file_without_head_suits_transfer() -> None:
    source = checkpoint(dict(small(num_classes=0).state_dict()))
    with pytest.raises(WeightsError, match=r"missing there: linear\.weight, linear\.bias"):
        load_into(small(), source)
    report = load_into(small(), source, adapt=True)
    assert report.adapted == dict.fromkeys(
        ["linear.weight", "linear.bias"], "not in the file, left as it was"
    )


@pytest.mark.parametrize(
    "name", ["cifar_resnet8", "resnetv2_50", "nin_residual", "mobilenet_v2", "cifar_densenet_bc_100_12"]
)
def test_grey_answers_as_the_same_grey_in_every_channel(name: str) -> None:
    shape: dict[str, Any] = {
        "resnetv2_50": {"depths": [1, 1], "width": 8},
        "mobilenet_v2": {"width_factor": 0.25},
        "cifar_densenet_bc_100_12": {"depths": [2, 2]},
    }.get(name, {})
    theirs, ours = small(name, **shape), small(name, in_channels=1, **shape)
    report = load_into(ours, checkpoint(dict(theirs.state_dict())), adapt=True)
    assert set(report.adapted.values()) == {"3 input channels summed to 1"}
    grey = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(grey), theirs(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_more_channels_repeat_the_kernels_in_turn(channels: int) -> None:
    theirs, ours = small(), small(in_channels=channels)
    report = load_into(ours, checkpoint(dict(theirs.state_dict())), adapt=True)
    assert report.adapted == {
        "conv1.weight": f"3 input channels repeated to {channels}, scaled by 3/{channels}"
    }
    for i in range(channels):
        torch.testing.assert_close(ours.conv1.weight[:, i], theirs.conv1.weight[:, i % 3] * 3 / channels)


def test_timm_adapts_the_first_convolution_alike() -> None:
    import timm.models

    kernels = torch.randn(8, 3, 3, 3)
    for channels in (1, 2, 4, 7):
        ours = small(in_channels=channels, width=8)
        source = dict(small(width=8).state_dict()) | {"conv1.weight": kernels}
        load_into(ours, checkpoint(source), adapt=True)
        torch.testing.assert_close(
            ours.conv1.weight.detach(), timm.models.adapt_input_conv(channels, kernels)
        )


def test_other_misfits_are_refused_all_the_same_and_change_nothing() -> None:
    source = checkpoint(dict(small(width=8, in_channels=1, num_classes=3).state_dict()))
    ours = small()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(WeightsError, match=r"conv1\.weight is \(8, 1, 3, 3\) there and \(16, 3, 3, 3\)"):
        load_into(ours, source, adapt=True)
    assert same(ours.state_dict(), before)
    report = load_into(ours, source, strict=False, adapt=True)
    assert "linear.weight" in report.mismatched  # of other features, not only of other classes


@pytest.mark.parametrize("ours", ["linear", "convolution"])
def test_a_one_by_one_convolution_and_a_linear_layer_are_taken_for_each_other(ours: str) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    layer: nn.Module = nn.Linear(3, 2) if ours == "linear" else nn.Conv2d(3, 2, 1)
    there, here = (weight[..., None, None], weight) if ours == "linear" else (weight, weight[..., None, None])
    report = load_into(layer, checkpoint({"weight": there, "bias": torch.ones(2)}))
    assert torch.equal(layer.weight, here)  # type: ignore[arg-type]
    assert report.adapted == {"weight": f"taken from the shape {tuple(there.shape)}"}
    with pytest.raises(WeightsError, match=r"weight is \(2, 3, 2, 2\) there"):
        load_into(nn.Linear(3, 2), checkpoint({"weight": torch.ones(2, 3, 2, 2), "bias": torch.ones(2)}))


# The report


def test_the_report_for_people_and_for_json() -> None:
    names = [f"layer{i}.weight" for i in range(5)]
    report = KeyReport(
        matched=names,
        renamed={"old": "layer0.weight"},
        missing=names,
        unexpected=("x",),
        mismatched={"y": ((1, 2), (3, 2))},
        adapted={"conv1.weight": "3 input channels summed to 1"},
    )
    assert report.lines() == [
        "matched: 5",
        "renamed: 1 (old -> layer0.weight)",
        "adapted: 1 (conv1.weight: 3 input channels summed to 1)",
        "missing: 5 (layer0.weight, layer1.weight, layer2.weight and 2 more)",
        "unexpected: 1 (x)",
        "mismatched: 1 (y (1, 2) there, (3, 2) here)",
    ]
    values = json.loads(json.dumps(report.as_dict()))
    assert values["missing"] == names
    assert values["mismatched"] == {"y": [[1, 2], [3, 2]]}
    assert set(values) == {"matched", "renamed", "adapted", "missing", "unexpected", "mismatched"}
