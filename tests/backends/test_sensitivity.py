"""Layers ranked by what int8 does to them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from reskit.backends.sensitivity import rank_by_sensitivity
from reskit.backends.servable import Servable
from reskit.data import ImagePreprocess


def network() -> Servable:
    torch.manual_seed(0)
    preprocess = ImagePreprocess(size=(8, 8))
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return Servable(preprocess.normalize(), layers).eval()


SAMPLES = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)


def test_a_layer_with_one_huge_weight_a_channel_is_hurt_most() -> None:
    model = network()
    first, spoiled = model.get_submodule("model.0"), model.get_submodule("model.2")
    first.weight.data[0], first.bias.data[0] = 0.0, -1.0  # a channel that is always zero after its ReLU ...
    spoiled.weight.data[:, 0] = 200.0  # ... is read with weights beside which all others round to zero
    assert rank_by_sensitivity(model, SAMPLES)[0] == "model.2"


def test_every_layer_with_weights_is_ranked_and_none_altered() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = torch.from_numpy(SAMPLES)
    expected = model(pixels)
    assert sorted(rank_by_sensitivity(model, SAMPLES)) == ["model.0", "model.2", "model.6"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(pixels), expected)
