"""Optimisers and learning-rate schedules, made from a recipe."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from reskit.config import OptimizerConfig, ScheduleConfig
from reskit.training.muon import Muon

__all__ = ["build_optimizer", "learning_rate_factor", "set_learning_rate"]

_FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}


def build_optimizer(
    parts: Iterable[tuple[Iterable[nn.Parameter], float]], config: OptimizerConfig
) -> Optimizer:
    """Return the optimiser of `config` over the trainable parameters of a network.

    Weight decay is put on weights only: vectors (biases, scales and shifts of norms) are left free,
    as in He et al. 2019, "Bag of Tricks", section 3.1. The fused kernels are used where torch has them.

    Args:
        parts: parameters, and the factor of the learning rate they learn with.
        config: what the recipe says.
    """
    groups: list[dict[str, Any]] = []
    for part, factor in parts:
        trainable = [parameter for parameter in part if parameter.requires_grad]
        weights = [p for p in trainable if p.ndim > 1]
        others = [p for p in trainable if p.ndim <= 1]
        groups.append({"params": weights, "weight_decay": config.weight_decay, "lr_factor": factor})
        groups.append({"params": others, "weight_decay": 0.0, "lr_factor": factor})
    fused = all(p.device.type in _FUSED_DEVICES for group in groups for p in group["params"])
    match config.name:
        case "sgd":
            return torch.optim.SGD(
                groups,
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.nesterov and config.momentum > 0,
                fused=fused,
            )
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
        case "muon":
            return Muon(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def learning_rate_factor(config: ScheduleConfig, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """Return the factor of the base learning rate at an optimiser step, counted from 0.

    A pure function of the step, so that resuming needs no state. Cosine is Loshchilov & Hutter 2017
    without restarts; onecycle rises linearly (Smith & Topin 2018) and falls by a cosine or a straight line.
    """
    epoch = step / steps_per_epoch
    if config.name == "onecycle":
        if epoch < config.peak_at * epochs:
            return 0.04 + 0.96 * epoch / (config.peak_at * epochs)
        fall = _cosine if config.anneal == "cosine" else _linear
        return fall((epoch / epochs - config.peak_at) / (1 - config.peak_at), config.final)
    if epoch < config.warmup_epochs:
        return (step + 1) / (config.warmup_epochs * steps_per_epoch + 1)
    match config.name:
        case "constant":
            return 1.0
        case "step":
            return config.gamma ** int(epoch / config.step_epochs)
        case "multistep":
            return config.gamma ** bisect_right(sorted(config.milestones), epoch)
        case "cosine":
            return _cosine((epoch - config.warmup_epochs) / (epochs - config.warmup_epochs), config.final)


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_factor"]


def _linear(progress: float, final: float) -> float:
    return final + (1 - final) * (1 - min(progress, 1.0))


def _cosine(progress: float, final: float) -> float:
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
