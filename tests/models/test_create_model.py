"""Building by name: what is known, what is refused and how it is said."""

from __future__ import annotations

import json

import pytest
import torch

from reskit.errors import ModelError, UnknownNameError
from reskit.models import MODELS, CifarResNet, create_model, list_models
from reskit.nn import BasicBlock, StochasticDepth
from reskit.registry import Registry


def rates(model: torch.nn.Module) -> list[float]:
    return [m.rate for m in model.modules() if isinstance(m, StochasticDepth)]


def test_names() -> None:
    assert list_models("cifar_plain*") == [f"cifar_plain{d}" for d in (110, 20, 32, 44, 56)]
    assert list_models() == sorted(MODELS)
    assert isinstance(MODELS, Registry)


def test_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="'resnet18'"):
        create_model("resnt18")


def test_unknown_argument_is_answered_with_near_ones() -> None:
    with pytest.raises(ModelError, match=r"'resnet18' takes no argument 'depth'; did you mean 'depths'"):
        create_model("resnet18", depth=[1])


def test_arguments_must_survive_json() -> None:
    with pytest.raises(ModelError, match="must be JSON values"):
        create_model("resnet18", block=BasicBlock)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cifar_resnet8", {"num_classes": -1}, "num_classes is -1"),
        ("cifar_resnet8", {"num_classes": "10"}, "num_classes is '10'"),
        ("cifar_resnet8", {"in_channels": 0}, "in_channels is 0"),
        ("cifar_resnet8", {"depths": []}, "depths is"),
        ("cifar_resnet8", {"depths": 3}, "depths is 3"),
        ("cifar_resnet8", {"depths": [1, 0]}, "each of depths is 0"),
        ("cifar_resnet8", {"width": [16, 32]}, "width has 2 values and depths 3"),
        ("cifar_resnet8", {"width": 1.5}, "width is 1.5"),
        ("cifar_resnet8", {"block": "botleneck"}, "did you mean 'bottleneck'"),
        ("cifar_resnet8", {"stem": "imagnet"}, "did you mean 'imagenet'"),
        ("cifar_resnet8", {"shortcut": "E"}, "unknown shortcut 'E'"),
        ("cifar_resnet8", {"shortcut": "identity"}, "identity shortcut cannot"),
        ("cifar_resnet8", {"groups": 2}, "use block='bottleneck'"),
        ("cifar_resnet8", {"stride_first": True}, "use block='bottleneck'"),
        ("cifar_resnet8", {"stochastic_depth": 1.0}, "stochastic_depth is 1.0"),
        ("cifar_resnet8", {"se": -2}, "se is -2"),
        ("cifar_resnet8", {"residual": False, "zero_init": True}, "zero_init needs a shortcut"),
        ("cifar_plain20", {"stochastic_depth": 0.2}, "stochastic_depth needs a shortcut"),
        ("wrn_16_4", {"dropout": 1.5}, "dropout is 1.5"),
        ("wrn_16_4", {"stem_width": 0}, "stem_width is 0"),
        ("wrn_16_4", {"block": "widee"}, "did you mean 'wide'"),
        ("resnetv2_50", {"stem": "cifr"}, "did you mean 'cifar'"),
        ("cifar_preact_resnet110", {"dropout": 0.3}, "use block='wide'"),
        ("densenet121", {"residual": False}, "no plain twin"),
        ("densenet121", {"growth": 0}, "growth is 0"),
        ("densenet121", {"stem": "imag"}, "unknown stem"),
        ("nin", {"zero_init": True}, "zero_init needs a shortcut"),
        ("nin", {"dropout": "half"}, "dropout is 'half'"),
        ("mobilenet_v2", {"width_factor": 0}, "width_factor is 0"),
    ],
)
def test_bad_values(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message), torch.device("meta"):
        create_model(name, **arguments)


def test_architecture_is_what_was_asked_for() -> None:
    model = create_model("cifar_resnet8", in_channels=1, depths=(1, 2), stochastic_depth=0.5)
    assert model.architecture == {
        "name": "cifar_resnet8",
        "num_classes": 10,
        "in_channels": 1,
        "depths": [1, 2],
        "stochastic_depth": 0.5,
    }
    twin = create_model(**json.loads(json.dumps(model.architecture)))
    assert str(twin) == str(model)


def test_outputs() -> None:
    x = torch.zeros(2, 3, 8, 8)
    assert create_model("cifar_resnet8", num_classes=7)(x).shape == (2, 7)
    headless = create_model("cifar_resnet8", num_classes=0)
    assert torch.equal(headless.eval()(x), headless.pooled(x))
    assert headless(x).shape == (2, headless.num_features)
    maps = create_model("cifar_resnet8", features_only=True)
    assert [m.shape for m in maps(x)] == [(2, 16, 8, 8), (2, 32, 4, 4), (2, 64, 2, 2)]
    assert create_model(**maps.architecture).features_only


def test_head_is_the_layer_that_makes_logits() -> None:
    model = create_model("cifar_resnet8", num_classes=4)
    assert model.head is model.linear
    model.linear = torch.nn.Linear(model.num_features, 9)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 9)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_preact_resnet164", "nin_residual", "mobilenet_v2"])
def test_stochastic_depth_grows_linearly(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, stochastic_depth=0.5)
    found = rates(model)
    assert found == sorted(found)
    if name == "cifar_resnet20":
        assert found == pytest.approx([0.5 * i / 9 for i in range(1, 10)])


def test_shortcut_options_cost_parameters_as_in_the_paper() -> None:
    def count(**arguments: object) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in create_model("cifar_resnet20", **arguments).parameters())

    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    always = 3 * (16 * 16 + 2 * 16) + 2 * (32 * 32 + 2 * 32) + 2 * (64 * 64 + 2 * 64)
    assert count(shortcut="B") - count() == projections
    assert count(shortcut="C") - count() == projections + always
    assert count(shortcut="D") == count(shortcut="B")


def test_residual_undoes_the_plain_twin() -> None:
    assert str(create_model("cifar_plain20", residual=True)) == str(create_model("cifar_resnet20"))
    assert isinstance(create_model("cifar_plain20"), CifarResNet)


def test_convolutions_start_normal_by_fan_out() -> None:
    torch.manual_seed(0)
    weight = create_model("resnet18", depths=[1, 1]).layer2[0].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    # normal, not uniform: the fourth moment is three times the variance squared
    assert (weight**4).mean().item() == pytest.approx(3 * weight.var().item() ** 2, rel=0.05)


def test_the_imagenet_stem_of_a_preactivation_network() -> None:
    torch.manual_seed(0)
    model = create_model("resnetv2_50", depths=[1, 1], width=8, stem_width=16, num_classes=5).eval()
    maps = model.feature_maps(torch.randn(2, 3, 33, 47))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 17, 24), (2, 32, 9, 12), (2, 64, 5, 6)]
    assert (model.channels, model.strides) == ([16, 32, 64], [2, 4, 8])
    assert maps[0].min() < 0  # the bare convolution's
    assert all(m.min() >= 0 for m in maps[1:])
