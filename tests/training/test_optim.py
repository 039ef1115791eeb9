"""Schedules against torch's own, and what weight decay may touch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim import lr_scheduler as reference

from reskit.config import OptimizerConfig, ScheduleConfig
from reskit.training.optim import build_optimizer, learning_rate_factor

STEPS, EPOCHS = 10, 9


def factors(config: ScheduleConfig) -> list[float]:
    return [
        learning_rate_factor(config, step, steps_per_epoch=STEPS, epochs=EPOCHS)
        for step in range(STEPS * EPOCHS)
    ]


def torch_factors(make: object) -> list[float]:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer)
    rates = []
    for _ in range(STEPS * EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_is_torchs() -> None:
    expected = torch_factors(lambda o: reference.CosineAnnealingLR(o, STEPS * EPOCHS, eta_min=0.1))
    assert factors(ScheduleConfig(name="cosine", final=0.1)) == pytest.approx(expected)


def test_multistep_is_torchs() -> None:
    expected = torch_factors(lambda o: reference.MultiStepLR(o, [3 * STEPS, 6 * STEPS], gamma=0.2))
    assert factors(ScheduleConfig(name="multistep", milestones=(6, 3), gamma=0.2)) == pytest.approx(expected)


def test_step_is_torchs() -> None:
    expected = torch_factors(lambda o: reference.StepLR(o, 2 * STEPS, gamma=0.5))
    assert factors(ScheduleConfig(name="step", step_epochs=2, gamma=0.5)) == pytest.approx(expected)


def test_onecycle_rises_to_one_and_falls_to_the_end() -> None:
    falls = {
        how: factors(ScheduleConfig(name="onecycle", peak_at=1 / 3, anneal=how))
        for how in ("cosine", "linear")
    }
    assert [b - a for a, b in itertools.pairwise(falls["linear"][3 * STEPS :])] == pytest.approx(
        [-1 / (6 * STEPS)] * (6 * STEPS - 1)
    )
    values = falls["cosine"]
    peak = values.index(max(values))
    assert values[peak] == pytest.approx(1.0)
    assert peak == 3 * STEPS
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert values[-1] < 0.01


def test_warmup_is_linear_and_meets_the_schedule() -> None:
    values = factors(ScheduleConfig(name="constant", warmup_epochs=2))
    rises = [b - a for a, b in itertools.pairwise(values[: 2 * STEPS + 1])]
    assert rises == pytest.approx([rises[0]] * len(rises))
    assert values[2 * STEPS :] == [1.0] * (7 * STEPS)
    assert values[0] > 0


def test_weight_decay_is_on_weights_only() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    groups = build_optimizer([(model.parameters(), 1.0)], OptimizerConfig(weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.3 if name in {"0.weight", "3.weight"} else 0.0), name


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    groups = build_optimizer([(model.parameters(), 1.0)], OptimizerConfig()).param_groups
    assert [len(group["params"]) for group in groups] == [0, 1]


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_names(name: str, kind: type) -> None:
    assert type(build_optimizer([(nn.Linear(1, 1).parameters(), 1.0)], OptimizerConfig(name=name))) is kind
