from __future__ import annotations

import pytest
import torch
from torch import nn

from reskit.models import create_model, model_summary


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        ("resnet18", 1.82),
        ("resnet34", 3.67),
        ("resnet50", 4.09),
        ("resnet101", 7.80),
        ("resnet152", 11.51),
        ("wide_resnet50_2", 11.40),
        ("resnext50_32x4d", 4.23),
        ("densenet121", 2.83),
        ("mobilenet_v2", 0.301),
    ],
)
def test_multiply_adds_at_224_px(name: str, giga: float) -> None:
    """As torchvision documents them, in units of 10^9."""
    with torch.device("meta"):
        summary = model_summary(create_model(name), (3, 224, 224))
    assert summary["macs"] / 1e9 == pytest.approx(giga, abs=0.01)


def test_by_hand_and_mode_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 5 * 5, 2))
    summary = model_summary(model.train(), (3, 5, 5))
    assert summary == {"parameters": 4 * 27 + 4 + 200 + 2, "macs": 4 * 27 * 25 + 200}
    assert model.training
