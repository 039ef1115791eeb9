"""How good is it, and where does it go wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reskit.backends.answers import answers
from reskit.bundle import Bundle
from reskit.data import OnCorrupt, Source, choose_mode
from reskit.data.config import DataConfig
from reskit.errors import DataError, did_you_mean
from reskit.evaluation.report import write_report
from reskit.tasks import Answered, Batch, Feeding, Task

__all__ = [
    "Evaluation",
    "assess",
    "evaluate",
    "held_out_loader",
    "measure",
    "network_answers",
    "open_as_trained",
]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The outcome of `evaluate`.

    Attributes:
        task: name of the task.
        split: the split that was measured.
        metrics: scalar figures by name.
        analysis: the task's tables (for classification: per_class, confusion, reliability).
        examples: one row an example, as columns.
        files: what was written, by name.
    """

    task: str
    split: str
    metrics: dict[str, float]
    analysis: dict[str, Any]
    examples: dict[str, np.ndarray]
    files: dict[str, Path]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values, the examples left out."""
        return {
            "task": self.task,
            "split": self.split,
            "count": len(self.examples["index"]),
            "metrics": self.metrics,
            **self.analysis,
            "files": {name: str(path) for name, path in self.files.items()},
        }


def evaluate(
    bundle: Bundle | str | Path,
    data: str | Path | Source | None = None,
    *,
    split: str | None = None,
    out: str | Path | None = None,
    batch_size: int = 256,
    on_corrupt: OnCorrupt = "refuse",
    engine: str = "eager",
) -> Evaluation:
    """Measure a bundle on labelled data, in float32 unless another engine is named.

    Args:
        bundle: a loaded bundle or its folder.
        data: where the examples are; the bundle's own training data when absent. Columns are chosen, and
            splits drawn, as they were for training, so that what is held out was not trained on.
        split: which split; the held-out one of the data when absent.
        out: a folder for the report, its plots and the table of examples; nothing is written when absent.
        batch_size: examples at once.
        on_corrupt: ``refuse`` or ``skip`` images that cannot be read.
        engine: ``eager``, ``auto`` or a goal of `reskit.optimize`; see `reskit.predict`.

    Raises:
        DataError: the data cannot be read, has no such split, or has other classes than the bundle.
        ConfigError, BackendError: there is no such engine here.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    answer = answers(bundle, engine)
    source = data if isinstance(data, Source) else open_as_trained(bundle, data, on_corrupt)
    task = bundle.task
    loader, split = held_out_loader(task, source, split=split, batch_size=batch_size)
    return assess(
        task,
        lambda batch: task.outputs(answer, batch[task.raw]),
        loader,
        split=split,
        source=source,
        out=out,
    )


def open_as_trained(
    bundle: Bundle, data: str | Path | None = None, on_corrupt: OnCorrupt = "refuse"
) -> Source:
    """Open data with the settings of the bundle's own run.

    What is held out of the data it was trained on, or a copy of them, is held out again. Other data that have
    one split only are measured whole.
    """
    settings = bundle.config.provenance.get("settings", {})
    trained = DataConfig.model_validate(settings.get("data", {}))
    path = trained.path if data is None else str(data)
    own = data is None or str(data) == trained.path
    asked = trained.model_copy(
        update={"path": path, "on_corrupt": on_corrupt, "test": trained.test if own else None}
    )
    seed = settings.get("training", {}).get("seed", 0)
    if own:
        return bundle.task.open(asked, seed=seed)
    with contextlib.suppress(DataError):  # too few to be split; what else is wrong is found again
        source = bundle.task.open(asked, seed=seed)
        if source.fingerprint == bundle.config.provenance.get("fingerprint"):
            return source
    return bundle.task.open(asked.model_copy(update={"holdout": 0.0, "validation": 0.0}), seed=seed)


def held_out_loader(
    task: Task,
    source: Source,
    *,
    split: str | None = None,
    batch_size: int,
    most: int | None = None,
    shuffle: bool = False,
) -> tuple[DataLoader[Any], str]:
    """Return batches of a split to measure on, the held-out one when none is named, and its name.

    Of more than `most` examples as many are taken, spread over the split.

    Raises:
        DataError: there is no such split, the data have other classes, or an example cannot be read.
    """
    info = source.describe()
    split = split or info.held_out
    if split not in source.splits:
        raise DataError(f"{info.location} has no split {split!r}{did_you_mean(split, source.splits)}")
    task.check(source)
    part = source[split] if most is None else source[split].spread(most)
    mode, _ = choose_mode(info, task.stored(info))
    return task.loader(part, Feeding(batch_size=batch_size, mode=mode, shuffle=shuffle)), split


def assess(
    task: Task,
    answer: Callable[[Batch], Tensor],
    loader: DataLoader[Any],
    *,
    split: str,
    source: Source,
    out: str | Path | None = None,
) -> Evaluation:
    """Measure what answers over a split, make tables of it and, given a folder, a report with plots."""
    metrics, examples = measure(answer, loader, task)
    analysis = task.analyse(examples)
    dataset: Any = loader.dataset
    place = {int(row): i for i, row in enumerate(source[split].rows)}

    @torch.no_grad()
    def answered(row: int) -> Answered:
        batch = dataset.__getitems__([place[int(examples["index"][row])]])
        return Answered(batch, answer(batch).float().cpu())

    files = {}
    if out is not None:
        files = write_report(
            Path(out),
            task=task,
            split=split,
            metrics=metrics,
            analysis=analysis,
            examples=examples,
            answered=answered,
            source=source,
        )
    return Evaluation(
        task=task.name, split=split, metrics=metrics, analysis=analysis, examples=examples, files=files
    )


def network_answers(model: nn.Module, task: Task, device: torch.device) -> Callable[[Batch], Tensor]:
    """Return what answers batches with a network, put into evaluation mode, where it is."""
    model.eval()

    def answer(batch: Batch) -> Tensor:
        task.normalize.to(device)
        if "features" in batch:
            outputs: Tensor = model(batch["features"].to(device))
            return outputs
        raw = batch[task.raw].to(device)
        return task.outputs(lambda given: model(task.inputs({task.raw: given})), raw)

    return answer


@torch.no_grad()
def measure(
    answer: Callable[[Batch], Tensor],
    loader: Iterable[Batch],
    task: Task,
    *,
    gather: Callable[[Any], Any] = lambda values: values,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Score what is answered over a loader; return scalar metrics and one row an example.

    Args:
        answer: gives the outputs of a batch.
        loader: batches.
        task: metrics and rows.
        gather: joins the values of all processes and drops what was fed twice to pad the last batch
            (`Accelerator.gather_for_metrics`); metrics are then counted on every process alike.
    """
    metrics, rows = task.metrics(), []
    for batch in loader:
        outputs = answer(batch).float()
        target, index = (value.to(outputs.device) for value in (task.target(batch), batch["index"]))
        outputs, target, index = gather((outputs, target, index))
        outputs, target, index = outputs.cpu(), target.cpu(), index.cpu()
        metrics.update(outputs, target)
        rows.append({"index": index, **task.examples(outputs, target)})
    columns: dict[str, list[Tensor]] = {name: [row[name] for row in rows] for name in rows[0]}
    return (
        {name: float(value) for name, value in metrics.compute().items()},
        {name: torch.cat(values).numpy() for name, values in columns.items()},
    )
