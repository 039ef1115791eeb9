"""The Hub's cache as huggingface_hub lays it out, filled here: no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from reskit.data import ImagePreprocess
from reskit.errors import WeightsError
from reskit.files import sha256
from reskit.models import create_model, list_models
from reskit.weights import hub, load_into, read_checkpoint

COMMIT, OLDER = "a" * 40, "b" * 40
STATE = {"conv1.weight": torch.arange(6.0)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def snapshot(
    cache: Path,
    *,
    config: Any = None,
    processor: Any = None,
    state: dict[str, Tensor] | None = None,
    name: str = "owner/net",
    file: str = "model.safetensors",
    commit: str = COMMIT,
    branch: str = "main",
) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    reference = repository / "refs" / branch
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    if config is not None:
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    if file.endswith(".safetensors"):
        save_file(STATE if state is None else state, folder / file)
    else:
        torch.save(STATE if state is None else state, folder / file)
    return folder


TIMM = {
    "architecture": "resnet50",
    "num_classes": 3,
    "num_features": 2048,
    "global_pool": "avg",
    "label_names": ["cat", "dog", "cow"],
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "input_size": [3, 224, 288],
        "test_input_size": [3, 288, 288],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
    },
}


def test_timms_repositories_say_everything(cache: Path) -> None:
    folder = snapshot(cache, config=TIMM)
    found = read_checkpoint("hf:owner/net")
    assert found.format == "hub"
    assert torch.equal(found.state["conv1.weight"], STATE["conv1.weight"])
    assert found.architecture == {"name": "resnet50", "num_classes": 3}
    assert found.labels == ["cat", "dog", "cow"]
    preprocess = ImagePreprocess(**found.preprocess)
    assert preprocess == ImagePreprocess(
        size=(224, 288), resize="crop", crop_fraction=0.95, interpolation="bicubic"
    )
    assert found.provenance == {
        "repository": "owner/net",
        "revision": "main",
        "commit": COMMIT,
        "sha256": {"model.safetensors": sha256(folder / "model.safetensors")},
        "tag": "a1_in1k",
        "license": "apache-2.0",
        "first_conv": "conv1",
        "classifier": "fc",
    }
    json.dumps(found.provenance)
    assert found.notes == []


@pytest.mark.parametrize(
    ("source", "commit"),
    [
        ("hf:owner/net", COMMIT),
        (f"hf:owner/net@{OLDER}", OLDER),
        ("hf:owner/net@v1.0", OLDER),
        ("hf:owner/net@refs/pr/7", OLDER),
        ("hf:owner/net@v1.0/parts/other.safetensors", OLDER),
        ("hf:owner/net@refs/pr/7/parts/other.safetensors", OLDER),
    ],
)
def test_revisions_and_files(cache: Path, source: str, commit: str) -> None:
    snapshot(cache)
    for branch in ("v1.0", "refs/pr/7"):
        snapshot(cache, commit=OLDER, branch=branch)
        snapshot(cache, commit=OLDER, branch=branch, file="parts/other.safetensors")
    found = read_checkpoint(source)
    assert found.provenance["commit"] == commit
    assert list(found.provenance["sha256"]) == [
        "other.safetensors" if "other" in source else "model.safetensors"
    ]


def test_safetensors_first_then_the_older_name(cache: Path) -> None:
    folder = snapshot(cache, file="pytorch_model.bin")
    assert list(read_checkpoint("hf:owner/net").provenance["sha256"]) == ["pytorch_model.bin"]
    save_file({"other": torch.ones(1)}, folder / "model.safetensors")
    assert list(read_checkpoint("hf:owner/net").state) == ["other"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "hf:owner/absent",
            ["hf:owner/absent", "not in the cache", "HF_HUB_OFFLINE", "hf download owner/absent"],
        ),
        ("hf:owner/net@v9", ["--revision v9", "model.safetensors or pytorch_model.bin"]),
        ("hf:owner/net@main/gone.pth", ["gone.pth is not in the cache"]),
        ("hf:owner", ["'hf:owner' is not a source", "hf:owner/name[@revision"]),
        ("hf:owner/net/model.safetensors", ["is not a source"]),
        ("hf:owner/net@main/model.onnx", ["model.onnx is no weights file"]),
        ("hf:owner/..", ["does not give"]),
    ],
)
def test_what_cannot_be_had_is_one_line(cache: Path, source: str, words: list[str]) -> None:
    snapshot(cache)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(source)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_timm_are_ours() -> None:
    import timm

    assert set(list_models()) >= hub._TIMM_NAMES
    assert set(timm.list_models()) >= hub._TIMM_NAMES


@pytest.mark.parametrize(
    ("changes", "architecture", "note"),
    [
        ({"model_args": {"in_chans": 1}}, {"name": "resnet50", "num_classes": 3, "in_channels": 1}, None),
        ({"model_args": {"drop_rate": 0.1}}, {"name": "resnet50", "num_classes": 3}, None),
        ({"model_args": {"stem_type": "deep"}}, None, "stem_type"),
        ({"architecture": "resnet50d"}, None, "'resnet50d' has no twin"),
    ],
)
def test_networks_that_are_not_quite_ours(
    cache: Path, changes: dict[str, Any], architecture: dict[str, Any] | None, note: str | None
) -> None:
    snapshot(cache, config=TIMM | changes)
    found = read_checkpoint("hf:owner/net")
    assert found.architecture == architecture
    assert len(found.notes) == (note is not None)
    assert note is None or note in found.notes[0]


def test_other_ways_to_prepare_images_are_noted(cache: Path) -> None:
    pretrained = TIMM["pretrained_cfg"] | {"crop_mode": "border", "interpolation": "lanczos"}  # type: ignore[operator]
    snapshot(cache, config=TIMM | {"pretrained_cfg": pretrained})
    found = read_checkpoint("hf:owner/net")
    assert (found.preprocess["resize"], found.preprocess["interpolation"]) == ("crop", "bicubic")
    assert ["'border'" in found.notes[0], "'lanczos'" in found.notes[1]] == [True, True]


def test_a_repository_without_description(cache: Path) -> None:
    snapshot(cache)
    found = read_checkpoint("hf:owner/net")
    assert (found.architecture, found.labels, dict(found.preprocess)) == (None, None, {})
    assert found.notes == ["the repository does not say which network it holds"]


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[1]",
        "[" * 100_000,
        TIMM | {"num_classes": "many"},
        TIMM | {"pretrained_cfg": {"input_size": [3]}},
        TIMM | {"pretrained_cfg": 7},
        {"model_type": "resnet"},
        {"model_type": "resnet", "depths": 3, "hidden_sizes": [1]},
    ],
)
def test_hostile_descriptions_give_one_clear_error(cache: Path, config: Any) -> None:
    snapshot(cache, config=config)
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_checkpoint("hf:owner/net")


TRANSFORMERS = {
    "model_type": "resnet",
    "architectures": ["ResNetForImageClassification"],
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "embedding_size": 64,
    "layer_type": "basic",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "num_channels": 3,
    "id2label": {"0": "cat", "10": "owl", "2": "dog"},
}
PROCESSOR = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
}


def in_transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name a ResNet's tensors as transformers' modules do."""
    result = {}
    for name, tensor in state.items():
        *where, leaf = name.split(".")
        if where == ["fc"]:
            new = f"classifier.1.{leaf}"
        elif len(where) == 1:
            kind = {"conv1": "convolution", "bn1": "normalization"}[where[0]]
            new = f"resnet.embedder.embedder.{kind}.{leaf}"
        else:
            stage, block, *part = where
            at = f"resnet.encoder.stages.{int(stage[-1]) - 1}.layers.{block}"
            if part[0] == "downsample":
                new = f"{at}.shortcut.{['convolution', 'normalization'][int(part[1])]}.{leaf}"
            else:
                kind = "convolution" if part[0].startswith("conv") else "normalization"
                new = f"{at}.layer.{int(part[0][-1]) - 1}.{kind}.{leaf}"
        result[new] = tensor
    return result


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_transformers_names_lead_to_the_same_places(cache: Path, name: str) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"depths": [2, 1], "width": 8, "num_classes": 3}
    theirs = create_model(name, **arguments)
    foreign = in_transformers_names(dict(theirs.state_dict()))
    assert "resnet.embedder.embedder.convolution.weight" in foreign
    assert "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight" in foreign
    assert {"classifier.1.weight", "resnet.encoder.stages.1.layers.0.shortcut.normalization.bias"} <= set(
        foreign
    )
    snapshot(cache, config=TRANSFORMERS, state=foreign)
    ours = create_model(name, **arguments)
    report = load_into(ours, "hf:owner/net")
    assert report.renamed["resnet.encoder.stages.1.layers.0.layer.1.normalization.running_var"] == (
        "layer2.0.bn2.running_var"
    )
    assert len(report.renamed) == len(report.matched) == len(foreign)
    assert all(torch.equal(t, ours.state_dict()[n]) for n, t in theirs.state_dict().items())


def test_the_bare_backbone_of_transformers(cache: Path) -> None:
    theirs = create_model("resnet18", depths=[1], width=8, num_classes=0)
    foreign = {
        n.removeprefix("resnet."): t for n, t in in_transformers_names(dict(theirs.state_dict())).items()
    }
    snapshot(cache, state=foreign)
    ours = create_model("resnet18", depths=[1], width=8, num_classes=0, weights="hf:owner/net")
    assert all(torch.equal(t, ours.state_dict()[n]) for n, t in theirs.state_dict().items())


def test_transformers_repositories_say_everything(cache: Path) -> None:
    snapshot(cache, config=TRANSFORMERS, processor=PROCESSOR)
    found = read_checkpoint("hf:owner/net")
    assert found.architecture == {"name": "resnet18", "num_classes": 3}
    assert found.labels == ["cat", "dog", "owl"]  # by number, not as text
    assert ImagePreprocess(**found.preprocess) == ImagePreprocess(
        size=(224, 224), resize="crop", crop_fraction=0.875, interpolation="bicubic"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]},
            {"name": "resnet50"},
        ),
        (
            {
                "layer_type": "bottleneck",
                "depths": [3, 4, 23, 3],
                "hidden_sizes": [256, 512, 1024, 2048],
                "downsample_in_bottleneck": True,
                "num_channels": 1,
            },
            {"name": "resnet101", "in_channels": 1, "stride_first": True},
        ),
        ({"hidden_act": "gelu"}, None),
        ({"downsample_in_first_stage": True}, None),
        ({"depths": [2, 2, 2, 1]}, None),
    ],
)
def test_which_resnet_it_is(cache: Path, changes: dict[str, Any], expected: dict[str, Any] | None) -> None:
    snapshot(cache, config={k: v for k, v in TRANSFORMERS.items() if k != "id2label"} | changes)
    found = read_checkpoint("hf:owner/net")
    assert found.architecture == expected
    assert bool(found.notes) == (expected is None)


@pytest.mark.parametrize(
    ("size", "resize", "crop_fraction"),
    [({"shortest_edge": 224}, "crop", 0.875), ({"shortest_edge": 384}, "squash", 1.0)],
)
def test_sizes_of_transformers(cache: Path, size: Any, resize: str, crop_fraction: float) -> None:
    snapshot(cache, config=TRANSFORMERS, processor=PROCESSOR | {"size": size})
    found = read_checkpoint("hf:owner/net").preprocess
    assert (found["resize"], found["crop_fraction"]) == (resize, crop_fraction)
    assert found["size"] == (size["shortest_edge"],) * 2


def test_a_network_by_its_repository(cache: Path) -> None:
    theirs = create_model("resnet18", num_classes=3)
    snapshot(cache, config=TIMM | {"architecture": "resnet18"}, state=dict(theirs.state_dict()))
    checkpoint = read_checkpoint("hf:owner/net")
    assert checkpoint.architecture is not None
    ours = create_model(**checkpoint.architecture, weights=checkpoint)
    assert torch.equal(ours.fc.weight, theirs.fc.weight)
