"""Residual U-Nets: encoders, decoder, sizes and deep supervision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from reskit.errors import ModelError
from reskit.models import UNet, create_model
from reskit.nn import BasicBlock
from reskit.weights import load_into

SMALL: dict[str, Any] = {"encoder_arguments": {"depths": [1, 1], "width": 8}, "widths": [8, 6, 4]}


def small(**arguments: Any) -> UNet:
    torch.manual_seed(0)
    model = create_model("unet_resnet18", num_classes=3, **{**SMALL, **arguments})
    assert isinstance(model, UNet)
    return model


@pytest.mark.parametrize(
    ("encoder", "arguments"),
    [
        ("resnet50", {"depths": [1, 1, 1], "width": 8}),
        ("densenet121", {"depths": [2, 2], "growth": 4, "stem_width": 8}),
        ("mobilenet_v2", {"width_factor": 0.25}),
        ("wrn_16_4", {"depths": [1, 1], "width": 8}),
        ("nin", {}),
        ("cifar_preact_resnet110", {"depths": [1, 1], "width": 8, "stem_width": 8}),
    ],
)
def test_any_network_of_ours_is_an_encoder(encoder: str, arguments: dict[str, Any]) -> None:
    model = create_model("unet_resnet18", encoder=encoder, encoder_arguments=arguments, num_classes=3).eval()
    with torch.inference_mode():
        for size in ((32, 32), (37, 50)):
            assert model(torch.randn(2, 3, *size)).shape == (2, 3, *size)


def test_images_smaller_than_the_stride_are_answered() -> None:
    with torch.inference_mode():
        assert small().eval()(torch.randn(1, 3, 3, 1)).shape == (1, 3, 3, 1)


def test_every_level_of_the_decoder_is_a_residual_block_on_what_is_joined() -> None:
    model = small()
    blocks = [module for module in model.head.modules() if isinstance(module, BasicBlock)]
    # The maps have 8 channels at stride 2, 8 at 4 and 16 at 8; the image has 3 at 1.
    joined = [(block.conv1.in_channels, block.conv1.out_channels) for block in blocks]
    assert joined == [(16 + 8, 8), (8 + 8, 6), (6 + 3, 4)]
    assert all(len(block.downsample) == 2 for block in blocks)


def test_the_image_itself_is_joined_last() -> None:
    """A mark of one pixel changes the answer there more than what the encoder alone could say."""
    model = small().eval()
    torch.nn.init.zeros_(model.encoder.conv1.weight)  # an encoder that sees nothing
    image = torch.zeros(1, 3, 32, 32)
    marked = image.clone()
    marked[..., 13, 17] = 5.0
    with torch.inference_mode():
        changed = (model(marked) - model(image)).abs().sum(1)[0]
    rows, columns = torch.nonzero(changed > 1e-6, as_tuple=True)
    assert (rows.min(), rows.max()) == (10, 16)  # three 3x3 convolutions around it
    assert (columns.min(), columns.max()) == (14, 20)


def test_deep_supervision_answers_at_each_level_while_training_only() -> None:
    model = small(deep_supervision=True)
    x = torch.randn(2, 3, 20, 28)
    outputs = model(x)
    assert outputs.shape == (2, 3 * 3, 20, 28)
    fine, middle, coarse = outputs.split(3, 1)
    # The coarser ones are constant where they were enlarged from one pixel.
    assert torch.equal(middle[..., ::2, ::2], middle[..., 1::2, 1::2])
    assert torch.equal(coarse[..., ::4, ::4], coarse[..., 3::4, 3::4])
    assert not torch.equal(fine[..., ::2, ::2], fine[..., 1::2, 1::2])
    assert model.eval()(x).shape == (2, 3, 20, 28)


def test_without_it_training_and_evaluation_answer_alike_in_shape() -> None:
    assert small()(torch.randn(2, 3, 16, 16)).shape == (2, 3, 16, 16)


def test_features_are_those_of_the_encoder_and_no_classes_give_its_vector() -> None:
    model = create_model("unet_cifar_resnet20", features_only=True)
    assert (model.channels, model.strides) == ([16, 32, 64], [1, 2, 4])
    assert not any(True for _ in model.head.parameters())
    assert create_model("unet_cifar_resnet20", num_classes=0)(torch.randn(2, 3, 16, 16)).shape == (2, 64)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"encoder": "dncnn"}, "no encoder for a U-Net"),
        ({"encoder": "unet_resnet18"}, "no encoder for a U-Net"),
        ({"encoder": "resnet81"}, "did you mean 'resnet18'"),
        ({"encoder": "densenet121", "encoder_arguments": {}, "zero_init": True}, "does not know zero_init"),
        ({"encoder_arguments": {"residual": False}}, "residual is said once for both"),
        ({"widths": [8, 8]}, "widths has 2 values, this decoder 3 levels"),
        ({"widths": [8, 8, 0]}, "at least 1"),
        ({"residual": False, "zero_init": True}, "needs a shortcut"),
        (
            {"encoder": "cifar_resnet20", "encoder_arguments": {"depths": [1]}, "widths": None},
            "nothing to rise from",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: dict[str, Any], said: str) -> None:
    from reskit.errors import ReskitError

    with pytest.raises(ReskitError, match=said) as error:
        small(**arguments)
    assert isinstance(error.value, ModelError) or "unknown" in str(error.value)


def test_weights_of_a_classifier_fill_the_encoder(tmp_path: Path) -> None:
    classifier = create_model("resnet18", num_classes=7, **SMALL["encoder_arguments"])
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    model = small()
    before = model.decoder.logits.weight.clone()
    load_into(model, tmp_path / "classifier.safetensors", adapt=True)
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[name]), name
    assert torch.equal(model.decoder.logits.weight, before)


def test_weights_for_other_classes_leave_the_logits_fresh(tmp_path: Path) -> None:
    save_file(small().state_dict(), tmp_path / "three.safetensors")
    torch.manual_seed(1)
    model = create_model("unet_resnet18", num_classes=5, **SMALL)
    before = model.decoder.logits.weight.clone()
    load_into(model, tmp_path / "three.safetensors", adapt=True)
    assert torch.equal(model.decoder.rise[0].block.conv1.weight, small().decoder.rise[0].block.conv1.weight)
    assert torch.equal(model.decoder.logits.weight, before)
