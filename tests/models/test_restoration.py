"""Denoisers and super-resolution networks: published sizes, names, and where the residual is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reskit.backends.servable import folded
from reskit.errors import ModelError
from reskit.models import Backbone, create_model, identify
from reskit.nn import BicubicUpscale
from reskit.weights import Checkpoint


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("scale", "parameters"),
    # Lim et al. 2017 and the authors' code: about 1.37, 1.55 and 1.52 million.
    [(2, 1_369_859), (3, 1_554_499), (4, 1_517_571)],
)
def test_edsr_baseline_has_the_published_parameters(scale: int, parameters: int) -> None:
    assert numbers(create_model("edsr_baseline", scale=scale)) == parameters


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["vdsr", "edsr_baseline"])
def test_images_grow_by_the_scale(name: str, scale: int) -> None:
    model = create_model(name, in_channels=1, scale=scale, depth=2, width=4)
    assert model(torch.rand(2, 1, 9, 7)).shape == (2, 1, 9 * scale, 7 * scale)


def test_vdsr_without_detail_is_bicubic() -> None:
    image = torch.rand(1, 3, 8, 9)
    for subpixel in (False, True):
        model = create_model("vdsr", depth=2, width=4, scale=3, zero_init=True, subpixel=subpixel)
        assert torch.equal(model(image), BicubicUpscale(3)(image))


def test_both_kinds_of_vdsr_put_detail_where_it_belongs() -> None:
    """The last layer at a small size gives a square of values a pixel, in the order of its places."""
    model = create_model("vdsr", in_channels=1, depth=2, width=4, scale=2, subpixel=True)
    image = torch.rand(1, 1, 4, 4)
    with torch.no_grad():
        detail = model(image) - BicubicUpscale(2)(image)
        values = model.detailed.layers(image)
    assert isinstance(detail, Tensor)
    for place in range(4):
        torch.testing.assert_close(detail[0, 0, place // 2 :: 2, place % 2 :: 2], values[0, place])


def test_the_denoiser_predicts_the_noise() -> None:
    model = create_model("dncnn", in_channels=1, depth=3, width=4)
    image = torch.rand(2, 1, 12, 10)
    model.eval()
    torch.testing.assert_close(model(image), image - model.restored.layers(image))
    silent = create_model("dncnn", in_channels=1, depth=3, width=4, zero_init=True).eval()
    assert torch.equal(silent(image), image)


@pytest.mark.parametrize("size", [(12, 12), (11, 13), (2, 3)])
def test_a_folded_denoiser_takes_any_size(size: tuple[int, int]) -> None:
    model = create_model("dilated_denoiser", shuffle=2, width=4, zero_init=True).eval()
    image = torch.rand(1, 3, *size)
    assert torch.equal(model(image), image)


def test_norms_of_folded_denoisers_can_be_taken_into_the_convolutions() -> None:
    torch.manual_seed(0)
    model = create_model("dilated_denoiser", in_channels=1, shuffle=2, width=8)
    with torch.no_grad():
        model(torch.rand(4, 1, 16, 16))  # statistics
    lean = folded(model)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in lean.modules())
    image = torch.rand(2, 1, 13, 15)
    torch.testing.assert_close(lean(image), model.eval()(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dncnn", {}),
        ("dncnn_blind", {}),
        ("dilated_denoiser", {}),
        ("vdsr", {}),
        ("edsr_baseline", {}),
    ],
)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_they_are_known_by_their_weights(name: str, changes: dict[str, Any], in_channels: int) -> None:
    with torch.device("meta"):
        model = create_model(name, in_channels=in_channels, **changes)
    found = identify(Checkpoint(format="torch", source="w.pth", state=model.state_dict()))
    assert found == model.architecture
    named = identify(Checkpoint(format="torch", source="w.pth", state=model.state_dict()), name=name)
    assert named == model.architecture


def test_published_names_of_dncnn_are_ours(tmp_path: Any) -> None:
    model: Backbone = create_model("dncnn", in_channels=1)
    theirs = {
        f"module.dncnn.{name.removeprefix('restored.layers.')}": value
        for name, value in model.state_dict().items()
    }
    torch.save(theirs, tmp_path / "net.pth")
    torch.manual_seed(1)
    loaded = create_model("dncnn", in_channels=1, weights=tmp_path / "net.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("dilated_denoiser", {"dilations": [1]}, "at least two layers"),
        ("dncnn", {"shuffle": 0}, "shuffle is 0"),
        ("vdsr", {"scale": 5}, "give one of 2, 3, 4"),
        ("edsr_baseline", {"scale": True}, "give one of 2, 3, 4"),
        ("edsr_baseline", {"scaling": 0}, "give a positive number"),
        ("edsr_baseline", {"depth": 0}, "depth is 0"),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        create_model(name, **arguments)
