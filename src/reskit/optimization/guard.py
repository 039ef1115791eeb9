"""Held-out examples that every engine must answer as well as float32 eager does, or nearly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reskit.backends.answers import answers
from reskit.backends.plan import Guard
from reskit.bundle import Bundle
from reskit.data import Source
from reskit.errors import DataError
from reskit.evaluation import held_out_loader, measure, open_as_trained
from reskit.tasks import Batch

__all__ = ["AGREEMENT_FACTOR", "Examples", "guard_examples"]

AGREEMENT_FACTOR = 10
"""By how much more agreement with float32 may lose where no truth is known: another answer is a change, not
yet an error, and int8 of good networks changes a few in a hundred answers while its accuracy stays."""
SECONDS, EXAMPLES = 4.0, 2000
"""As many examples are used as float32 eager answers in this time, and so many at most."""


class Examples:
    """Batches with labels, and what float32 eager makes of them.

    Args:
        bundle: gives the task.
        batches: as the task's loader gives them.
        outputs: of float32 eager, a tensor a batch.
        on: what the examples are, for people.
        metric: name of the metric, for people.
        max_drop: units of the metric (see `Task.drop`) an engine may lose.
    """

    def __init__(
        self,
        bundle: Bundle,
        batches: list[Batch],
        outputs: list[Tensor],
        *,
        on: str,
        metric: str,
        max_drop: float,
    ) -> None:
        self.task, self.batches = bundle.task, batches
        given = iter(outputs)
        count = sum(len(batch["index"]) for batch in batches)
        self.guard = Guard(
            metric=metric,
            on=on,
            examples=count,
            float32=self._score(lambda _: next(given)),
            max_drop=max_drop,
            unit=self.task.drop.unit,
        )

    def score(self, answer: Callable[[np.ndarray], np.ndarray]) -> float:
        """Return the metric of what answers raw input, such as pixels `(N, C, H, W)`."""

        def network(pixels: Tensor) -> Tensor:
            return torch.from_numpy(answer(pixels.contiguous().numpy()))

        # What answers has the processors: threads of this process that wait for work would take them away.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._score(lambda batch: self.task.outputs(network, batch[self.task.raw]))
        finally:
            torch.set_num_threads(threads)

    def accepts(self, metric: float) -> bool:
        """Tell whether a metric is close enough to float32's; one that is not finite never is."""
        return self.points_lost(metric) <= self.guard.max_drop

    def points_lost(self, metric: float) -> float:
        """Return by how much a metric is worse than float32's, in the task's units of loss."""
        drop = (self.guard.float32 - metric) / self.task.drop.size
        return drop if self.task.higher_is_better else -drop

    def _score(self, answer: Callable[[Batch], Tensor]) -> float:
        return measure(answer, self.batches, self.task)[0][self.task.main_metric]


def guard_examples(
    bundle: Bundle,
    data: str | Path | Source | None,
    pictures: Tensor | None,
    *,
    batch_size: int,
    max_drop: float,
    say: Callable[[str], None],
) -> Examples:
    """Return the examples that guard a bundle's accuracy.

    Held-out labelled data, that given or that it was trained on; where there is none, pictures without
    labels, whose answers are then held against those of float32.

    Args:
        bundle: what is guarded.
        data: labelled data.
        pictures: raw `(N, C, H, W)` without labels.
        batch_size: examples a batch.
        max_drop: units of the task's main metric (see `Task.drop`) an engine may lose.
        say: told where the examples come from.

    Raises:
        DataError: `data` cannot be read.
    """
    task = bundle.task
    if pictures is None:
        try:
            source = data if isinstance(data, Source) else open_as_trained(bundle, data)
            loader, split = held_out_loader(task, source, batch_size=batch_size, most=EXAMPLES, shuffle=True)
        except DataError as error:
            if data is not None:
                raise
            say(f"no labelled data to guard accuracy with ({error}); agreement with float32 is held instead")
        else:
            on = f"{split} of {source.location}"
            kept, outputs = _answered(bundle, loader)
            return Examples(bundle, kept, outputs, on=on, metric=task.main_metric, max_drop=max_drop)
    stored = bundle.samples["samples"] if pictures is None else pictures
    unlabelled: Iterable[Batch] = ({task.raw: chunk} for chunk in torch.split(stored, batch_size))
    kept, outputs = _answered(bundle, unlabelled)
    batches: list[Batch] = [
        {**batch, **task.agreement(out)} for batch, out in zip(kept, outputs, strict=True)
    ]
    return Examples(
        bundle,
        batches,
        outputs,
        on="pictures without labels",
        metric=f"{task.main_metric} agreement with float32",
        max_drop=max(max_drop, AGREEMENT_FACTOR * task.drop.most),
    )


def _answered(bundle: Bundle, batches: Iterable[Batch]) -> tuple[list[Batch], list[Tensor]]:
    """Return as many batches as eager answers in `SECONDS`, and its answers."""
    kept, outputs = [], []
    answer, deadline = answers(bundle, "eager"), time.perf_counter() + SECONDS
    for batch in batches:
        outputs.append(bundle.task.outputs(answer, batch[bundle.task.raw]))
        kept.append(batch)
        if time.perf_counter() > deadline:
            break
    return kept, outputs
