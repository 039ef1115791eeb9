from __future__ import annotations

import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reskit.errors import WeightsError
from reskit.models import create_model
from reskit.weights import load_into, load_state

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


class Foreign:
    """Runs code when unpickled: the test would see the file it makes."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def small() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(3, 2)})


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        OrderedDict(STATE),
        {"state_dict": STATE, "epoch": 3, "best_prec1": 91.8},
        {"model": STATE, "optimizer": {"state": {}, "param_groups": []}},
        {"ema": STATE, "state_dict": prefixed("older.")},
        {"ema": {"decay": 0.999, "module": STATE}},
        prefixed("module."),
        {"state_dict": prefixed("module._orig_mod.")},
        prefixed("_orig_mod.module."),
        prefixed("module.") | {"n_averaged": torch.tensor(7)},
        {name: nn.Parameter(tensor) for name, tensor in STATE.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_and_prefixes_come_off(tmp_path: Path, content: object, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert same(load_state(path), STATE)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_by_name_or_content(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    assert same(load_state(str(tmp_path / name)), STATE)


def test_a_prefix_only_some_names_share_stays(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "w.pth")
    assert same(load_state(tmp_path / "w.pth"), state)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects_are_never_run(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    torch.save({"state_dict": STATE, "extra": Foreign(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"pathlib\.Path\.touch|builtins\.getattr|never loads"):
        load_state(path)
    assert not trace.exists()
    path.write_bytes(pickle.dumps(Foreign(trace)))
    with pytest.raises(WeightsError):
        load_state(path)
    assert not trace.exists()


def test_a_whole_pickled_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules.*save model\.state_dict\(\)"):
        load_state(tmp_path / "model.pth")


def test_a_program_is_refused_and_safety_never_advised_away(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        archive.writestr("program/constants.pkl", b"")
        archive.writestr("program/data.pkl", b"")
        archive.writestr("program/version", b"3")
    with pytest.raises(WeightsError, match="TorchScript program") as caught:
        load_state(tmp_path / "program.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_files_give_one_clear_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    chance = random.Random(0)
    for length in [0, 1, 7, 9, *(chance.randrange(len(whole) - 8) for _ in range(20))]:
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"w\.(pth|safetensors)") as caught:
            load_state(path)
        assert "weights_only" not in str(caught.value)
    path.write_bytes(chance.randbytes(500))
    with pytest.raises(WeightsError, match=r"fetch or save it again|never loads"):
        load_state(path)


def test_what_is_not_a_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a directory"):
        load_state(tmp_path)
    with pytest.raises(WeightsError, match="no weights file"):
        load_state(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("not weights at all\n")
    with pytest.raises(WeightsError, match="not a whole PyTorch weights file"):
        load_state(tmp_path / "text.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "its keys are epoch, optimizer"),
        ([torch.ones(1)], "it holds a list"),
        (torch.ones(1), "it holds a Tensor"),
        ({}, "its keys are none"),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        load_state(tmp_path / "w.pth")


def test_load_into_fills_the_model_and_reports(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    model = small()
    report = load_into(model, tmp_path / "w.pth")
    assert same(dict(model.state_dict()), STATE)
    assert set(report.matched) == set(STATE)
    assert not any([report.renamed, report.missing, report.unexpected, report.mismatched])


def test_a_misfit_is_named_and_changes_nothing(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(5, 3), "b.weight": torch.ones(1)}, tmp_path / "w.pth")
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_into(model, tmp_path / "w.pth")
    for word in (
        "missing there: a.bias",
        "unknown here: b.weight",
        "a.weight is (5, 3) there and (2, 3) here",
    ):
        assert word in str(caught.value)
    assert same(dict(model.state_dict()), before)


def test_not_strict_loads_what_fits(tmp_path: Path) -> None:
    torch.save(
        {"a.weight": torch.ones(5, 3), "a.bias": torch.ones(2), "b": torch.ones(1)}, tmp_path / "w.pth"
    )
    model = small()
    report = load_into(model, tmp_path / "w.pth", strict=False)
    assert report.matched == ("a.bias",)
    assert report.unexpected == ("b",)
    assert report.mismatched == {"a.weight": ((5, 3), (2, 3))}
    assert report.missing == ()
    assert model.state_dict()["a.bias"].tolist() == [1.0, 1.0]


def test_half_precision_is_widened(tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in STATE.items()}, tmp_path / "w.pth")
    model = small()
    load_into(model, tmp_path / "w.pth")
    assert same(dict(model.state_dict()), STATE)


def test_counter_of_batches_may_be_missing(tmp_path: Path) -> None:
    model = create_model("cifar_resnet8")
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    create_model("cifar_resnet8", weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_classes": 7}, ["linear.weight is (10, 64) there and (7, 64) here", "num_classes"]),
        ({"in_channels": 1}, ["conv1.weight is (16, 3, 3, 3) there and (16, 1, 3, 3) here", "in_channels"]),
        ({"depths": [2, 1, 1]}, ["missing there: layer1.1.conv1.weight", "same architecture"]),
    ],
)
def test_weights_that_do_not_fit_say_why(
    tmp_path: Path, arguments: dict[str, object], words: list[str]
) -> None:
    save_file(create_model("cifar_resnet8").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        create_model("cifar_resnet8", weights=tmp_path / "w.safetensors", **arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"features_only": True}])
def test_a_network_without_head_leaves_the_head_in_the_file(
    tmp_path: Path, arguments: dict[str, object]
) -> None:
    source = create_model("cifar_resnet8")
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = create_model("cifar_resnet8", weights=tmp_path / "w.safetensors", **arguments)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval().pooled(x), source.eval().pooled(x))


def test_old_densenet_names_are_renamed(tmp_path: Path) -> None:
    model = create_model("cifar_densenet_bc_100_12", depths=[2, 2])
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(old, tmp_path / "w.safetensors")
    report = load_into(model, tmp_path / "w.safetensors")
    assert report.renamed["features.denseblock1.denselayer1.norm.1.weight"] == (
        "features.denseblock1.denselayer1.norm1.weight"
    )
    assert not report.missing
