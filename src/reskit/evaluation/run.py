"""How good is it, and where does it go wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reskit.backends.answers import answers
from reskit.bundle import Bundle
from reskit.data import OnCorrupt, Source, choose_mode, make_loader, open_source
from reskit.errors import DataError, did_you_mean
from reskit.evaluation.report import write_report
from reskit.tasks import Batch, Task

__all__ = ["Evaluation", "evaluate", "measure", "network_answers", "open_as_trained"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The outcome of `evaluate`.

    Attributes:
        split: the split that was measured.
        metrics: scalar figures by name.
        analysis: the task's tables (for classification: per_class, confusion, reliability).
        examples: one row an example, as columns.
        files: what was written, by name.
    """

    split: str
    metrics: dict[str, float]
    analysis: dict[str, Any]
    examples: dict[str, np.ndarray]
    files: dict[str, Path]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values, the examples left out."""
        return {
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
    info, task = source.describe(), bundle.task
    split = split or info.held_out
    if split not in source.splits:
        raise DataError(f"{info.location} has no split {split!r}{did_you_mean(split, source.splits)}")
    if list(info.classes) != task.labels:
        raise DataError(
            f"{info.location} has the classes {_shown(info.classes)},"
            f" the bundle was trained on {_shown(task.labels)}"
        )
    mode, _ = choose_mode(info, task.preprocess)
    loader = make_loader(source[split], preprocess=task.preprocess, batch_size=batch_size, mode=mode)
    metrics, examples = measure(lambda batch: answer(batch["image"]), loader, task)
    return summarise(task, split=split, metrics=metrics, examples=examples, source=source, out=out)


def open_as_trained(
    bundle: Bundle, data: str | Path | None = None, on_corrupt: OnCorrupt = "refuse"
) -> Source:
    """Open data with the settings of the bundle's own run."""
    settings = bundle.config.provenance.get("settings", {})
    trained = settings.get("data", {})
    drawn = {"seed": settings.get("training", {}).get("seed", 0)}
    for name in ("image_column", "label_column", "holdout", "validation"):
        if name in trained:
            drawn[name] = trained[name]
    return open_source(trained.get("path") if data is None else data, on_corrupt=on_corrupt, **drawn)


def summarise(
    task: Task,
    *,
    split: str,
    metrics: dict[str, float],
    examples: dict[str, np.ndarray],
    source: Source,
    out: str | Path | None,
) -> Evaluation:
    """Turn the rows of an evaluation into tables and, given a folder, into a report with plots."""
    analysis = task.analyse(examples)
    files = {}
    if out is not None:
        files = write_report(
            Path(out),
            task=task,
            split=split,
            metrics=metrics,
            analysis=analysis,
            examples=examples,
            source=source,
        )
    return Evaluation(split=split, metrics=metrics, analysis=analysis, examples=examples, files=files)


def network_answers(model: nn.Module, task: Task, device: torch.device) -> Callable[[Batch], Tensor]:
    """Return what answers batches with a network, put into evaluation mode, where it is."""
    model.eval()

    def answer(batch: Batch) -> Tensor:
        task.normalize.to(device)
        outputs: Tensor = model(task.inputs({name: value.to(device) for name, value in batch.items()}))
        return outputs

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


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")
