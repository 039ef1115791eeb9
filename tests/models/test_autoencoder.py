"""The autoencoders: what goes in comes out in the same size, by way of a vector that may be drawn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reskit.errors import ModelError
from reskit.models import Autoencoder, create_model
from reskit.models.autoencoder import divergence, take_apart
from reskit.nn import BasicBlock


def made(*, variational: bool = True, **arguments: object) -> Autoencoder:
    torch.manual_seed(0)
    settings = {"size": (9, 14), "latent": 5, "depths": (1, 2), "width": 4, "in_channels": 3, **arguments}
    return Autoencoder(variational=variational, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("size", [(9, 14), (8, 8), (1, 5), (33, 31)])
def test_a_row_holds_all_parts(size: tuple[int, int], variational: bool) -> None:
    model = made(variational=variational, size=size).eval()
    x = torch.rand(4, 3, *size)
    outputs = model(x)
    pixels = 3 * size[0] * size[1]
    assert outputs.shape == (4, pixels + (10 if variational else 5) + 1)
    images, mean, log_variance, score = take_apart(outputs, (3, *size), 5)
    assert images.shape == x.shape
    assert 0 < images.min() < images.max() < 1
    torch.testing.assert_close(mean, model.encode(x))
    torch.testing.assert_close(images, model.decode(mean))
    torch.testing.assert_close(score, (images - x).square().mean((1, 2, 3)))
    assert (log_variance is not None) == variational


def test_the_vector_is_drawn_in_training_only() -> None:
    model, x = made(), torch.rand(2, 3, 9, 14)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    torch.manual_seed(1)
    first = model(x)
    assert not torch.equal(model(x), first)
    torch.manual_seed(1)
    assert torch.equal(model(x), first)
    model.eval()
    assert torch.equal(model(x), model(x))
    plain = made(variational=False)
    assert torch.equal(plain(x), plain(x))


def test_drawn_vectors_have_the_distribution_that_is_told() -> None:
    model, x = made(), torch.rand(1, 3, 9, 14).expand(4000, -1, -1, -1)
    seen: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.eval()
    mean, log_variance = model.distribution(x)
    assert log_variance is not None
    model.training = True  # draws, while the norms rest
    with torch.no_grad():
        model(x)
    torch.testing.assert_close(seen[0].mean(0), mean[0], atol=0.1, rtol=0)
    torch.testing.assert_close(seen[0].std(0), (log_variance[0] / 2).exp(), atol=0, rtol=0.06)


def test_samples_are_images_and_repeatable() -> None:
    model = made()
    first = model.sample(6, generator=torch.Generator().manual_seed(3))
    assert first.shape == (6, 3, 9, 14)
    assert model.training
    assert torch.equal(first, model.sample(6, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(first[0], first[1])
    with pytest.raises(ModelError, match="residual_vae"):
        made(variational=False).sample(1)


def test_the_decoder_mirrors_the_encoder() -> None:
    model = made(depths=(1, 2, 3), width=4)
    blocks = [
        [block for block in model.get_submodule(f"{part}.layer{stage}") if isinstance(block, BasicBlock)]
        for part, stages in (("encoder", (1, 2, 3)), ("decoder", (3, 2, 1)))
        for stage in stages
    ]
    widths = [[block.conv2.out_channels for block in stage] for stage in blocks]
    assert widths[:3] == widths[3:] == [[4], [8, 8], [16, 16, 16]]


def test_the_divergence_is_none_from_the_prior_itself() -> None:
    assert divergence(torch.zeros(2, 5), torch.zeros(2, 5)).tolist() == [0, 0]
    torch.testing.assert_close(divergence(torch.ones(1, 4), torch.zeros(1, 4)), torch.tensor([2.0]))


def test_maps_are_those_of_the_encoder_at_any_size() -> None:
    model = create_model("residual_vae", features_only=True, depths=[1, 1], width=4)
    maps = model(torch.rand(1, 3, 17, 21))
    assert [tuple(m.shape) for m in maps] == [(1, 4, 17, 21), (1, 8, 9, 11)]
    assert not any("decoder" in name or "latent" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent": 0}, "latent is 0"),
        ({"size": 32}, "size is 32"),
        ({"size": [32]}, "size has 1 values"),
        ({"depths": []}, "depths"),
        ({"residual": False, "zero_init": True}, "zero_init"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model("residual_vae", **arguments)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ModelError, match="images of 9x14, not 14x9"):
        made()(torch.rand(1, 3, 14, 9))
