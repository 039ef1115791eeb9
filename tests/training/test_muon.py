"""Muon: held against torch's on matrices, and on convolutions seen as matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reskit.config import OptimizerConfig
from reskit.training.muon import Muon, orthogonalized
from reskit.training.optim import build_optimizer


def gradients(shape: tuple[int, ...], steps: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_of_a_matrix_are_torchs(shape: tuple[int, int], nesterov: bool) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.05, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    optimizers = Muon([ours], **settings), torch.optim.Muon([theirs], **settings)
    for gradient in gradients(shape):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    # Both reckon in bfloat16, and torch's running mean is a tenth of ours: a direction alone counts.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.1 * 0.05)


def test_a_convolution_learns_as_the_matrix_of_its_patches() -> None:
    start = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    convolution = nn.Parameter(start.clone().to(memory_format=torch.channels_last))
    matrix = nn.Parameter(start.flatten(1).clone())
    optimizers = Muon([convolution], lr=0.1), Muon([matrix], lr=0.1)
    for gradient in gradients((8, 3, 3, 3)):
        convolution.grad = gradient.clone().to(memory_format=torch.channels_last)
        matrix.grad = gradient.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(convolution.flatten(1), matrix)
    assert not torch.equal(convolution, start)


def test_vectors_learn_by_sgd() -> None:
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizers = (
        Muon([ours], lr=0.1, momentum=0.9),
        torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=True),
    )
    for gradient in gradients((5,)):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(0)
    for rows, columns in [(16, 144), (10, 64), (64, 10)]:
        matrices = torch.randn(3, rows, columns) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
        values = torch.linalg.svdvals(orthogonalized(matrices))
        assert values.min() > 0.5
        assert values.max() < 1.35


def test_a_zero_gradient_changes_nothing() -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.zeros(3, 4)
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, torch.ones(3, 4))


def test_a_recipe_makes_one_with_decay_on_weights_only() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = build_optimizer(
        [(model.parameters(), 1.0)], OptimizerConfig(name="muon", lr=0.05, weight_decay=0.01)
    )
    assert isinstance(optimizer, Muon)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
