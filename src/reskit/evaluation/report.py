"""An evaluation written down: JSON for tools, CSV for tables, pictures and a page for people."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from reskit.data import Source
from reskit.files import to_json, write_text
from reskit.tasks import TASKS, Answered, Task

__all__ = ["metrics_table", "write_report"]

_MAX_ROWS = 40
_CLASS_COLUMNS = ("target", "prediction")


def write_report(
    folder: Path,
    *,
    task: Task,
    split: str,
    metrics: Mapping[str, float],
    analysis: Mapping[str, Any],
    examples: Mapping[str, np.ndarray],
    answered: Callable[[int], Answered],
    source: Source,
) -> dict[str, Path]:
    """Write `metrics.json`, `examples.csv`, the task's pictures and `report.md` into a folder.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        task: names the classes and draws the pictures.
        split: what was measured.
        metrics: scalar figures by name.
        analysis: the task's tables, JSON values.
        examples: one row an example, as columns `(N,)`; `index` is the row number in the split.
        answered: reads and answers a row of the examples again.
        source: where the examples are.

    Returns:
        The files by name: metrics, examples, report, and one for each picture.

    Raises:
        OutputError: the file system refuses.
        DataError: an image that is to be shown cannot be read any more.
    """
    pictures = task.draw(analysis, examples, answered, folder)
    files = {
        "report": folder / "report.md",
        "metrics": folder / "metrics.json",
        "examples": folder / "examples.csv",
    }
    count = len(examples["index"])
    figures = {"task": task.name, "split": split, "count": count, "metrics": dict(metrics), **analysis}
    write_text(files["metrics"], to_json(figures))
    write_text(files["examples"], _examples_csv(task, examples, source, split))
    page = _page(
        task, split=split, count=count, metrics=metrics, analysis=analysis, source=source, pictures=pictures
    )
    write_text(files["report"], page)
    return {**files, **pictures}


def metrics_table(task: str, metrics: Mapping[str, float], title: str | None = None) -> Table:
    """Return the metrics of a task as a table for the terminal."""
    table = Table("metric", title=title, title_justify="left")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("meaning", style="dim")
    for row in _metric_rows(TASKS.get(task), metrics):
        table.add_row(row["metric"], f"{row['value']:.4f}", row["meaning"])
    return table


def _metric_rows(task: Task | type[Task], metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return metrics with what they mean, in the order in which the task names them, the main one first."""
    meaning = task.meanings
    order = list(meaning)
    names = sorted(metrics, key=lambda name: order.index(name) if name in order else len(order))
    return [
        {"metric": name, "value": float(metrics[name]), "meaning": meaning.get(name, "")} for name in names
    ]


def _examples_csv(task: Task, examples: Mapping[str, np.ndarray], source: Source, split: str) -> str:
    """Return one line an example: the task's columns, classes by name, and which file it was."""
    columns: dict[str, Iterable[Any]] = {}
    for name, values in examples.items():
        if values.ndim > 1:
            continue  # what the tables were made of, such as boxes
        is_class = name in _CLASS_COLUMNS and np.issubdtype(values.dtype, np.integer)
        columns[name] = [task.labels[i] for i in values] if is_class else values.tolist()
    columns["file"] = [source[split].row_name(row) for row in examples["index"].tolist()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _page(
    task: Task,
    *,
    split: str,
    count: int,
    metrics: Mapping[str, float],
    analysis: Mapping[str, Any],
    source: Source,
    pictures: Mapping[str, Path],
) -> str:
    """Return the report in Markdown."""
    lines = [
        "# Evaluation",
        "",
        f"**{task.main_metric} {metrics[task.main_metric]:.4f}** on the {count:,} examples of `{split}`"
        f" of {_cell(source.location)}" + (f", {len(task.labels)} classes." if task.labels else "."),
        "",
        *_table(_metric_rows(task, metrics)),
    ]
    if "confusion" in analysis and (pairs := _confused(analysis["confusion"], task.labels)):
        lines += ["", "## Most frequent mistakes", "", *_table(pairs)]
    for name, path in pictures.items():
        lines += ["", f"## {name.replace('_', ' ').capitalize()}", "", f"![{name}]({path.name})"]
    if per_class := analysis.get("per_class"):
        lines += ["", "## Classes", "", *_class_table(per_class, task.weakest_by)]
    lines += [
        "",
        "Every example is in [examples.csv](examples.csv), every figure in [metrics.json](metrics.json).",
        "",
    ]
    return "\n".join(lines)


def _class_table(rows: Sequence[Mapping[str, Any]], weakest_by: str) -> list[str]:
    """Return the per-class table, of many classes the weakest only, worst first."""
    ordered = sorted(rows, key=lambda row: float(row.get(weakest_by, 0.0)))
    left = len(ordered) - _MAX_ROWS
    said = f"The {_MAX_ROWS} weakest of {len(ordered)} classes" if left > 0 else "The weakest come first"
    return [f"{said}.", "", *_table(ordered[:_MAX_ROWS])]


def _confused(matrix: Sequence[Sequence[int]], labels: Sequence[str], most: int = 10) -> list[dict[str, Any]]:
    """Return the pairs of classes mistaken most often."""
    counts = np.array(matrix)
    support = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(labels)) for place in order if counts.flat[place] > 0]
    return [
        {
            "true": labels[true],
            "predicted": labels[said],
            "count": int(counts[true, said]),
            "share of the true class": f"{counts[true, said] / support[true]:.1%}",
        }
        for true, said in pairs
    ]


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a Markdown table; numbers to the right."""
    columns = list(rows[0])
    rules = ["---:" if isinstance(rows[0][name], int | float) else "---" for name in columns]
    body = [[_cell(row[name]) for name in columns] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in ([_cell(name) for name in columns], rules, *body)]


def _cell(value: Any) -> str:
    """Return a value as it may stand in a Markdown table: one line, its own markup switched off."""
    if isinstance(value, float):
        return f"{value:.4f}"
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*<>|&[\]]|\b_|_\b)", r"\\\1", line)  # an underscore inside a word marks nothing up
