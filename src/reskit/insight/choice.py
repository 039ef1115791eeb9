"""Which blocks a network can best do without: one goes at a time, and what is left is ranked again."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from reskit.errors import ConfigError, ModelError
from reskit.insight.blocks import removable_blocks, residual_blocks, without_blocks
from reskit.insight.examples import Examples
from reskit.insight.lesion import lesion
from reskit.insight.ratio import ratios
from reskit.models import Backbone, model_summary

__all__ = ["By", "PruneStep", "choose", "how_many", "measure_steps"]

By = Literal["lesion", "ratio"]
"""What tells the cheapest block: the loss without it, or the size of ``F(x)`` against ``x``."""

ROUNDS = 15


@dataclass(frozen=True, kw_only=True)
class PruneStep:
    """The network after a number of blocks were left out, before anything learned on.

    Attributes:
        block: what was left out last, by its name in the intact network; None for that network.
        blocks: how many are left.
        loss: on the examples that were chosen by.
        metric: likewise, the task's main metric.
        parameters: of the network.
        macs: its multiply-adds for one example.
        latency_ms: median for one example in float32 eager; all steps were timed in turns.
    """

    block: str | None
    blocks: int
    loss: float
    metric: float
    parameters: int
    macs: int
    latency_ms: float


def how_many(model: Backbone, share: float) -> int:
    """Return how many blocks a share of all residual blocks is, rounded up.

    Raises:
        ConfigError: `share` is not a share.
        ModelError: not so many can be left out.
    """
    if not 0 < share < 1:
        raise ConfigError(f"share is {share:g}: give one between 0 and 1")
    count = math.ceil(share * len(residual_blocks(model)) - 1e-9)
    spare = 0
    while able := removable_blocks(model):
        model, spare = without_blocks(model, able[:1]), spare + 1
    if count > spare:
        raise ModelError(
            f"{share:.0%} of the blocks are {count}, and {spare} can be left out: those whose shortcut is the"
            " identity, one kept a stage, of a family that is built by depths"
        )
    return count


def choose(
    model: Backbone, examples: Examples, *, count: int, by: By, say: Callable[[str], None]
) -> list[str]:
    """Return the names of the blocks to leave out, in the order in which they can best be missed.

    One goes at a time, and what is left is ranked again: blocks that can each be missed may not all be.

    Args:
        model: the intact network.
        examples: what to choose by.
        count: how many blocks, not more than :func:`how_many` allows.
        by: what tells the cheapest.
        say: told of each choice.
    """
    kept, chosen = list(residual_blocks(model)), list[str]()
    losses: dict[str, float] = {}
    for _ in range(count):
        able = removable_blocks(model)
        # Names in the intact network to names in what is left of it.
        now = {first: name for first, name in zip(kept, residual_blocks(model), strict=True) if name in able}
        if by == "ratio":
            found = ratios(model, examples)
            cheapest = min(now, key=lambda name: found[now[name]][1] or 0.0)
        else:
            cheapest = _least_lesion(model, now, examples, losses)
        say(f"out goes {cheapest}, the cheapest by {by}")
        model = without_blocks(model, [now[cheapest]])
        kept.remove(cheapest)
        chosen.append(cheapest)
    return chosen


def _least_lesion(
    model: Backbone, now: Mapping[str, str], examples: Examples, losses: dict[str, float]
) -> str:
    """Return the block without which the loss is lowest; what is measured goes into `losses`.

    What a block costs hardly ever falls when others go, so a loss measured before is taken for a lower bound,
    and only blocks that may be the cheapest are measured again.

    Source: Minoux, Accelerated Greedy Algorithms for Maximizing Submodular Set Functions, 1978.
    """
    measured = set[str]()
    while (cheapest := min(now, key=lambda name: losses.get(name, -math.inf))) not in measured:
        loss, _ = lesion(model, now[cheapest], examples)
        losses[cheapest] = math.inf if math.isnan(loss) else loss
        measured.add(cheapest)
    return cheapest


def measure_steps(model: Backbone, names: Sequence[str], examples: Examples) -> tuple[PruneStep, ...]:
    """Return figures of the intact network and of what is left after each block."""
    networks = [model, *(without_blocks(model, names[:place]) for place in range(1, len(names) + 1))]
    scores = [examples.score(network) for network in networks]
    first = {name: values[:1].to(examples.device) for name, values in examples.batches[0].items()}
    x = examples.task.inputs(first)
    return tuple(
        PruneStep(
            block=name,
            blocks=len(residual_blocks(network)),
            loss=loss,
            metric=metric,
            **model_summary(network, x.shape[1:]),
            latency_ms=milliseconds,
        )
        for name, network, (loss, metric), milliseconds in zip(
            (None, *names), networks, scores, _latencies(networks, x), strict=True
        )
    )


@torch.inference_mode()
def _latencies(networks: Sequence[nn.Module], x: Tensor) -> list[float]:
    """Return the median milliseconds of each network on `x`; in turns, so that disturbances meet all."""
    seconds: list[list[float]] = [[] for _ in networks]
    for _ in range(ROUNDS + 1):  # the first round is a warm-up
        for network, taken in zip(networks, seconds, strict=True):
            begun = time.perf_counter()
            network(x)
            if x.device.type != "cpu":
                torch.accelerator.synchronize()
            taken.append(time.perf_counter() - begun)
    return [1e3 * statistics.median(taken[1:]) for taken in seconds]
